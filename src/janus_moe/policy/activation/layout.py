"""Where the replicas of one layer live, and what the activation scheduler answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from janus_moe.errors import ConfigError


class Assignment(NamedTuple):
    """Which instance computes each activated expert.

    instance_of_expert: [experts] int32, -1 where the expert is not activated.
    activated: [instances] int32, distinct activated experts per instance.
    optimal: no assignment has a smaller maximum of `activated`; False means not proved.
    """

    instance_of_expert: NDArray[np.int32]
    activated: NDArray[np.int32]
    optimal: bool


class Rewrite(NamedTuple):
    """Where every (token, k) is computed.

    labels: [tokens, top_k] int32, -1 for padding: the instance, or what the scheduler's own
        labels say instead (a slot, a physical expert id).
    activated: [instances] int32, distinct activated experts per instance; an expert that two
        instances compute counts on both.
    optimal: no choice has a smaller maximum of `activated`; False means not proved.
    """

    labels: NDArray[np.int32]
    activated: NDArray[np.int32]
    optimal: bool


@dataclass(frozen=True, eq=False)
class LayerLayout:
    """The holders of every expert of one layer; read-only.

    holders: [experts, max_replicas] int32, instance ids ascending, padded with -1 at the end.
    """

    holders: NDArray[np.int32]
    num_instances: int

    def __post_init__(self) -> None:
        holders = np.array(self.holders, dtype=np.int32, order="C", ndmin=2)
        if holders.ndim != 2 or 0 in holders.shape:
            raise ConfigError(f"holders must be [experts, max_replicas], got shape {holders.shape}")
        unheld = np.flatnonzero((holders == -1).all(axis=1))
        if unheld.size:
            raise ConfigError(f"expert {unheld[0]} has no holder; give every expert a slot")
        outside = holders[(holders < -1) | (holders >= self.num_instances)]
        if outside.size:
            raise ConfigError(
                f"holder {outside[0]} is not an instance; ids run from 0 to "
                f"{self.num_instances - 1}"
            )
        left, right = holders[:, :-1], holders[:, 1:]
        disordered = np.flatnonzero(((right != -1) & ((left == -1) | (right <= left))).any(axis=1))
        if disordered.size:
            expert = disordered[0]
            raise ConfigError(
                f"holders of expert {expert} must ascend without repetition, padding (-1) last; "
                f"got {holders[expert].tolist()}"
            )
        holders.setflags(write=False)
        object.__setattr__(self, "holders", holders)

    @classmethod
    def from_slots(cls, slots: Sequence[Sequence[int]], num_experts: int) -> LayerLayout:
        """slots: per instance, the logical experts it holds; at most one replica of each."""
        holders: list[list[int]] = [[] for _ in range(num_experts)]
        for instance, experts in enumerate(slots):
            for expert in experts:
                if not 0 <= expert < num_experts:
                    raise ConfigError(
                        f"instance {instance} holds expert {expert}, but ids run from 0 to "
                        f"{num_experts - 1}"
                    )
                holders[expert].append(instance)
        table = np.full((num_experts, max(1, max(map(len, holders)))), -1, np.int32)
        for expert, instances in enumerate(holders):
            table[expert, : len(instances)] = instances
        return cls(table, len(slots))

    @property
    def num_experts(self) -> int:
        return int(self.holders.shape[0])

    @property
    def num_replicas(self) -> NDArray[np.int32]:
        """[experts] int32, replicas of each expert."""
        return np.asarray((self.holders >= 0).sum(axis=1), np.int32)
