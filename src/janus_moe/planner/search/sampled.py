"""a_max from routing that was recorded, or drawn: the real scheduler on the real placement.

Monte Carlo at a few pool sizes corrects the normal approximation at all of them: their ratio is
smooth in the logarithm of the pool size, where a_max itself is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from janus_moe.errors import ConfigError
from janus_moe.planner.latency.arrays import Array
from janus_moe.planner.search.activation import BATCH_SIZES, PopularityActivation
from janus_moe.policy.estimate import BatchSampler, monte_carlo
from janus_moe.policy.placement import place_experts
from janus_moe.policy.placement.search import activation_probability
from janus_moe.policy.routing_trace import RoutingTrace
from janus_moe.spec import ReplicaPolicy

POOLS = 5
"""Pool sizes that are sampled, spread evenly over the logarithm."""
SIZES = (4, 16, 64, 256, 1024)
"""Batches that are sampled; between them the correction is interpolated."""
PLACED_FOR = 64
"""Tokens in the batch that placements are made for."""


@dataclass(frozen=True, eq=False)
class SampledActivation:
    """a_max of the real scheduler on sampled batches.

    samplers: one for each layer that is looked at.
    counts: [layers, experts] tokens of each expert among `num_tokens` of each layer.
    """

    name: str
    samplers: Sequence[BatchSampler]
    counts: NDArray[np.int64]
    num_tokens: int
    num_samples: int = 8
    seed: int = 0

    @property
    def num_experts(self) -> int:
        return int(self.counts.shape[1])

    @cached_property
    def _independent(self) -> tuple[PopularityActivation, ...]:
        return tuple(PopularityActivation(self.name, row / self.num_tokens) for row in self.counts)

    def table(
        self, instances: NDArray[np.int64], slots: NDArray[np.int64], policy: ReplicaPolicy
    ) -> Array:
        """As `ActivationSource.table`: the mean over the layers."""
        tables = [one.table(instances, slots, policy) for one in self._independent]
        plain: Array = np.asarray(np.mean(tables, axis=0))
        spread = np.geomspace(1, len(instances), min(POOLS, len(instances))).round().astype(int)
        picked = np.unique(spread - 1)
        ratios = np.array(
            [
                self._sampled(int(instances[row]), int(slots[row]), policy) / plain[row, _COLUMNS]
                for row in picked
            ]
        )
        by_pool = np.array(
            [
                np.interp(np.log(instances), np.log(instances[picked]), ratios[:, column])
                for column in range(len(SIZES))
            ]
        )  # [SIZES, pools]
        factor = np.array(
            [np.interp(np.log(BATCH_SIZES), np.log(SIZES), column) for column in by_pool.T]
        )
        return np.asarray(np.minimum(plain * factor, slots[:, None]))

    def _sampled(self, instances: int, slots: int, policy: ReplicaPolicy) -> Array:
        """[SIZES] mean over the layers."""
        capacity = [slots] * instances
        split = policy == "token-split"
        load = self.counts / self.num_tokens
        if not split:
            load = activation_probability(
                self.counts, np.full(len(self.counts), self.num_tokens), PLACED_FOR
            )
        placement = place_experts("eplb" if split else "janus", load, capacity)
        means = [
            [
                monte_carlo(
                    sample,
                    placement.layer_layout(layer),
                    size,
                    policy,
                    self.num_samples,
                    self.seed,
                )
                for size in SIZES
            ]
            for layer, sample in enumerate(self.samplers)
        ]
        return np.asarray(np.mean(means, axis=0))


_COLUMNS = [BATCH_SIZES.index(size) for size in SIZES]


def from_trace(trace: RoutingTrace, name: str, max_layers: int = 3) -> SampledActivation:
    """Layers spread evenly over the trace; tokens drawn from all of it."""
    if trace.num_tokens < 1:
        raise ConfigError(f"{name} holds no token; record some traffic first")
    layers = np.unique(np.linspace(0, trace.num_layers - 1, max_layers).round().astype(int))

    def sampler(layer: int) -> BatchSampler:
        return lambda size, rng: trace.sample(layer, size, rng)

    counts = [
        np.bincount(trace.ids[layer].ravel(), minlength=trace.num_experts) for layer in layers
    ]
    return SampledActivation(
        name=name,
        samplers=[sampler(int(layer)) for layer in layers],
        counts=np.array(counts, np.int64),
        num_tokens=trace.num_tokens,
    )
