"""a_max of a pool from the real scheduler on sampled batches, made as it is needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from janus_moe.policy.activation import Policy
from janus_moe.policy.estimate import BatchSampler, MaxActivatedTable
from janus_moe.policy.placement import PlacementMethod, even_capacity, place_experts

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
SAMPLES = 8

PoolMaxActivated = Callable[[int, int, float, Policy], float]
"""(expert instances, slots per layer of all of them, tokens, policy) -> a_max."""


def placement_of(policy: Policy) -> PlacementMethod:
    """The placement that goes with a policy: who splits tokens balances tokens."""
    return "eplb" if policy == "token-split" else "janus"


class SampledMaxActivated:
    """One layer's router. Equal arguments and seed give equal answers in any order."""

    def __init__(self, sample: BatchSampler, num_experts: int, seed: int = 0) -> None:
        self._sample, self._num_experts, self._seed = sample, num_experts, seed
        self._tables: dict[tuple[int, int, Policy], MaxActivatedTable] = {}

    def __call__(
        self, instances: int, slots: int, tokens: float, policy: Policy = "exact"
    ) -> float:
        key = instances, slots, policy
        if key not in self._tables:
            self._tables[key] = self._table(instances, slots, policy)
        return self._tables[key].max_activated(instances, tokens)

    def _table(self, instances: int, slots: int, policy: Policy) -> MaxActivatedTable:
        method = placement_of(policy)
        redundant = min(slots, instances * self._num_experts) - self._num_experts
        capacity = even_capacity(self._num_experts, instances, redundant)
        seen = np.zeros(self._num_experts)
        rng = np.random.default_rng(self._seed)
        for ids in (self._sample(64, rng) for _ in range(32)):
            if method == "eplb":  # it weighs tokens, the others the chance of being active
                seen += np.bincount(ids.ravel(), minlength=self._num_experts)
            else:
                seen[np.unique(ids)] += 1 / 32
        placement = place_experts(method, seen[None, :], capacity)
        return MaxActivatedTable.sampled(
            self._sample,
            {instances: placement.layer_layout(0)},
            BATCHES,
            policy,
            SAMPLES,
            self._seed,
        )
