"""Entry points of the activation scheduler."""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from janus_moe.errors import ConfigError
from janus_moe.policy.activation import fast
from janus_moe.policy.activation.layout import Assignment, LayerLayout, Rewrite
from janus_moe.spec import Policy

UNLIMITED = 2**31 - 1
"""Repairs need no limit to end: each lightens an instance. Most batches need none or one."""

_CHOICE = {"metro": fast.LEAST_LOADED, "random": fast.HASHED}


class Scheduler:
    """One layer's scheduler with its buffers: an assignment is valid until the next one.

    Not for two threads at once; give each its own.

    seed: of `random`; the other policies have no chance in them.
    labels: [experts, max_replicas] integers, what `rewrite` writes for each replica, columns as
        in `layout.holders`; without it the instance.
    max_repairs: of `exact`; with fewer than it needs the answer may say `optimal` False.
    """

    def __init__(
        self,
        layout: LayerLayout,
        policy: Policy = "exact",
        *,
        seed: int = 0,
        labels: ArrayLike | None = None,
        max_repairs: int = UNLIMITED,
    ) -> None:
        if policy not in get_args(Policy):
            names = ", ".join(get_args(Policy))
            raise ConfigError(f"--activation-policy must be one of {names}; got {policy!r}")
        num_experts, num_instances = layout.num_experts, layout.num_instances
        self.layout = layout
        self.policy = policy
        self._labels = as_labels(labels, layout)
        self._num_replicas = layout.num_replicas
        self._instance_of_expert = np.empty(num_experts, np.int32)
        self._activated = np.empty(num_instances, np.int32)
        several = self._num_replicas > 1
        self._state = (  # what `fast.run` takes besides the ids
            layout.holders,
            np.where(several, np.int32(num_instances), layout.holders[:, 0]),
            np.flatnonzero(several).astype(np.int32),
            _CHOICE.get(policy, fast.LEAST_LOADED_SINGLES_FIRST),
            max_repairs if policy == "exact" else 0,
            np.uint64(seed),
            self._instance_of_expert,
            self._activated,
            np.empty((fast.NUM_EXPERT_ROWS, num_experts + 1), np.int32),
            np.empty((fast.NUM_INSTANCE_ROWS, num_instances + 1), np.int32),
        )

    def schedule(self, expert_ids: NDArray[np.int32]) -> Assignment:
        """expert_ids: [tokens, top_k] int32 logical ids, -1 = padding; no token is fine."""
        if self.policy == "token-split":
            raise ConfigError(
                "token-split gives one expert to several instances; call rewrite, not schedule"
            )
        if expert_ids.ndim != 2 or expert_ids.dtype != np.int32 or not expert_ids.flags.carray:
            expert_ids = as_ids(expert_ids)
        status = fast.run(expert_ids, *self._state)
        if status == fast.INVALID_ID:
            raise ValueError(describe_invalid(expert_ids, self.layout.num_experts))
        return Assignment(self._instance_of_expert, self._activated, status == fast.OPTIMAL)

    def rewrite(self, expert_ids: NDArray[np.int32]) -> Rewrite:
        """The replica of every (token, k), under any policy; `labels` is a fresh array."""
        if expert_ids.ndim != 2 or expert_ids.dtype != np.int32 or not expert_ids.flags.carray:
            expert_ids = as_ids(expert_ids)
        labels = np.empty_like(expert_ids)
        if self.policy == "token-split":
            status = fast.split_tokens(
                expert_ids,
                self.layout.holders,
                self._num_replicas,
                self._labels,
                self._activated,
                labels,
            )
        else:
            status = fast.run_and_rewrite(expert_ids, *self._state, self._labels, labels)
        if status == fast.INVALID_ID:
            raise ValueError(describe_invalid(expert_ids, self.layout.num_experts))
        return Rewrite(labels, self._activated, status == fast.OPTIMAL)


def schedule(policy: Policy, expert_ids: NDArray[np.int32], layout: LayerLayout) -> Assignment:
    """One assignment in fresh arrays. `Scheduler` is the fast form for many."""
    return Scheduler(layout, policy).schedule(expert_ids)


def as_ids(expert_ids: NDArray[np.generic]) -> NDArray[np.int32]:
    """The one array type that the compiled code is made for: int32, contiguous, writeable."""
    if expert_ids.ndim != 2 or not np.issubdtype(expert_ids.dtype, np.integer):
        raise ValueError(
            f"expert_ids must be integers [tokens, top_k], got {expert_ids.dtype} with shape "
            f"{expert_ids.shape}"
        )
    limits = np.iinfo(np.int32)
    return np.array(np.clip(expert_ids, limits.min, limits.max), dtype=np.int32, order="C")


def as_labels(labels: ArrayLike | None, layout: LayerLayout) -> NDArray[np.int32]:
    if labels is None:
        return layout.holders
    table = np.array(labels, dtype=np.int32, order="C")
    if table.shape != layout.holders.shape:
        raise ConfigError(
            f"labels must have the shape of holders, {layout.holders.shape}; got {table.shape}"
        )
    table.setflags(write=False)  # like holders: one compiled signature
    return table


def describe_invalid(expert_ids: NDArray[np.int32], num_experts: int) -> str:
    token, choice = np.argwhere((expert_ids < -1) | (expert_ids >= num_experts))[0]
    return (
        f"expert id {expert_ids[token, choice]} of token {token} is out of range; ids run from 0 "
        f"to {num_experts - 1}, -1 is padding"
    )
