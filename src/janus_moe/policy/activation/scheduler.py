"""Entry points of the activation scheduler."""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import NDArray

from janus_moe.errors import ConfigError
from janus_moe.policy.activation import fast
from janus_moe.policy.activation.layout import Assignment, LayerLayout, Policy


class Scheduler:
    """One layer's scheduler with its buffers: an assignment is valid until the next one.

    Not for two threads at once; give each its own.
    """

    def __init__(self, layout: LayerLayout, policy: Policy = "exact") -> None:
        if policy not in get_args(Policy):
            names = " or ".join(get_args(Policy))
            raise ConfigError(f"--activation-policy must be {names}, got {policy!r}")
        num_experts, num_instances = layout.num_experts, layout.num_instances
        self.layout = layout
        self.policy = policy
        self._hosts = layout.hosts
        self._repairs = int(policy == "exact")
        self._instance_of_expert = np.empty(num_experts, np.int32)
        self._activated = np.empty(num_instances, np.int32)
        self._by_expert = np.empty((fast.NUM_EXPERT_ROWS, num_experts), np.int32)
        self._by_instance = np.empty((fast.NUM_INSTANCE_ROWS, num_instances), np.int32)

    def schedule(self, expert_ids: NDArray[np.int32]) -> Assignment:
        """expert_ids: [tokens, top_k] int32 logical ids, -1 = padding; no token is fine."""
        if expert_ids.ndim != 2 or expert_ids.dtype != np.int32 or not expert_ids.flags.carray:
            expert_ids = _as_ids(expert_ids)
        status = fast.run(
            expert_ids,
            self._hosts,
            self._repairs,
            self._instance_of_expert,
            self._activated,
            self._by_expert,
            self._by_instance,
        )
        if status == fast.INVALID_ID:
            raise ValueError(_describe_invalid(expert_ids, self.layout.num_experts))
        return Assignment(self._instance_of_expert, self._activated, status == fast.OPTIMAL)


def schedule(policy: Policy, expert_ids: NDArray[np.int32], layout: LayerLayout) -> Assignment:
    """One assignment in fresh arrays. `Scheduler` is the fast form for many."""
    return Scheduler(layout, policy).schedule(expert_ids)


def _as_ids(expert_ids: NDArray[np.generic]) -> NDArray[np.int32]:
    """The one array type that the compiled code is made for: int32, contiguous, writeable."""
    if expert_ids.ndim != 2 or not np.issubdtype(expert_ids.dtype, np.integer):
        raise ValueError(
            f"expert_ids must be integers [tokens, top_k], got {expert_ids.dtype} with shape "
            f"{expert_ids.shape}"
        )
    limits = np.iinfo(np.int32)
    return np.array(np.clip(expert_ids, limits.min, limits.max), dtype=np.int32, order="C")


def _describe_invalid(expert_ids: NDArray[np.int32], num_experts: int) -> str:
    token, choice = np.argwhere((expert_ids < -1) | (expert_ids >= num_experts))[0]
    return (
        f"expert id {expert_ids[token, choice]} of token {token} is out of range; ids run from 0 "
        f"to {num_experts - 1}, -1 is padding"
    )
