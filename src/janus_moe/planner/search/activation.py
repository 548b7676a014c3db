"""a_max for searches: activated experts of the busiest instance, for every pool size at once.

`policy.estimate` has the exact convolution and Monte Carlo for one placement. A search asks about
hundreds of pool sizes, so here counts are taken as normal with the mean and variance of a balanced
placement:

    exact        P(a_max <= m) = P(one instance's own experts <= m)^n * P(all active <= m * n)
    random       P(a_max <= m) = P(one instance's slots <= m)^n; an active expert with two
                 replicas activates either slot with chance 1/2
    token-split  the same, but each replica is active if any token of its half is

with n instances. Experts with two replicas are those that are active most often. Balanced means
that each instance has an even share of the mean and the variance, as the placement `janus` aims
for; `SampledActivation` corrects it with the real scheduler on the real placement.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from janus_moe.errors import ConfigError
from janus_moe.planner.latency.arrays import Array
from janus_moe.spec import ReplicaPolicy

SPREADS = 6.0
"""Standard deviations beyond which a count is as good as impossible."""

BATCH_SIZES: tuple[int, ...] = tuple(2**power for power in range(18))


class ActivationSource(Protocol):
    """Where a_max comes from.

    name: for reports.
    """

    @property
    def name(self) -> str: ...

    @property
    def num_experts(self) -> int: ...

    def table(
        self, instances: NDArray[np.int64], slots: NDArray[np.int64], policy: ReplicaPolicy
    ) -> Array:
        """The a_max of every pool at every batch size: [pools, BATCH_SIZES].

        instances, slots: [pools], slots per instance.
        """
        ...


@dataclass(frozen=True, eq=False)
class PopularityActivation:
    """Experts active independently.

    chance: [experts], that a token is routed to the expert; they sum up to top-k.
    """

    name: str
    chance: Array = field(repr=False)

    def __post_init__(self) -> None:
        chance = np.sort(np.asarray(self.chance, np.float64))[::-1]
        if chance.ndim != 1 or not chance.size or chance[0] > 1 or chance[-1] < 0:
            raise ConfigError("chances of experts must be a list of numbers from 0 to 1")
        object.__setattr__(self, "chance", chance)

    @property
    def num_experts(self) -> int:
        return int(self.chance.size)

    def table(
        self, instances: NDArray[np.int64], slots: NDArray[np.int64], policy: ReplicaPolicy
    ) -> Array:
        sizes = np.array(BATCH_SIZES, np.float64)
        active = 1 - (1 - self.chance) ** sizes[:, None]  # [sizes, experts], most active first
        half = active / 2
        if policy == "token-split":
            half = 1 - (1 - self.chance / 2) ** sizes[:, None]
        twice = np.clip(instances * slots - self.num_experts, 0, self.num_experts)
        mean_all, var_all = active.sum(axis=1), (active * (1 - active)).sum(axis=1)
        # Of the first `twice` experts; [pools, sizes]
        mean_twice = _prefix(active)[:, twice].T
        var_twice = _prefix(active * (1 - active))[:, twice].T
        n = instances[:, None].astype(np.float64)
        if policy == "exact":
            own = (mean_all - mean_twice) / n, (var_all - var_twice) / n
            cap: tuple[Array, Array] | None = (mean_all / n, var_all / n**2)
        else:
            mean = mean_all - mean_twice + 2 * _prefix(half)[:, twice].T
            var = var_all - var_twice + 2 * _prefix(half * (1 - half))[:, twice].T
            own, cap = (mean / n, var / n), None
        found = _expected_maximum(own, cap, n)
        least = np.maximum(mean_all / n, np.minimum(1.0, mean_all))
        most = np.minimum(slots[:, None], sizes * self.chance.sum() + 1)
        rising = np.maximum.accumulate(np.maximum(found, least), axis=1)
        return np.asarray(np.minimum(rising, most))


def uniform(num_experts: int, top_k: int) -> PopularityActivation:
    """What a perfectly balanced router would do."""
    return PopularityActivation("uniform routing", np.full(num_experts, top_k / num_experts))


def lognormal(num_experts: int, top_k: int, spread: float) -> PopularityActivation:
    """Popularity with normally distributed logarithms.

    spread: their standard deviation.
    """
    if spread < 0:
        raise ConfigError(f"the spread of popularity must be 0 or more, got {spread}")
    levels = (np.arange(num_experts) + 0.5) / num_experts
    weights = np.exp(spread * np.sqrt(2) * _inverse_erf(2 * levels - 1))
    low, high = 1e-9, 1e9
    for _ in range(100):  # chances saturate at 1: the factor that makes them sum up to top-k
        middle = np.sqrt(low * high)
        total = float((1 - np.exp(-weights * middle)).sum())
        low, high = (middle, high) if total < top_k else (low, middle)
    chance = 1 - np.exp(-weights * np.sqrt(low * high))
    return PopularityActivation(f"log-normal popularity, spread {spread:g}", chance)


@dataclass(frozen=True, eq=False)
class CachedActivation:
    """Another source whose tables are kept, for many questions about one model."""

    source: ActivationSource
    _tables: dict[tuple[bytes, bytes, str], Array] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def num_experts(self) -> int:
        return self.source.num_experts

    def table(
        self, instances: NDArray[np.int64], slots: NDArray[np.int64], policy: ReplicaPolicy
    ) -> Array:
        key = (instances.tobytes(), slots.tobytes(), policy)
        if key not in self._tables:
            self._tables[key] = self.source.table(instances, slots, policy)
        return self._tables[key]


@dataclass(frozen=True, eq=False)
class MaxActivatedGrid:
    """A table with interpolation: linear in log B; beyond the sampled sizes, the nearest.

    values: [pools, BATCH_SIZES].
    """

    values: Array

    def at(self, rows: NDArray[np.int64], batch: Array) -> Array:
        """a_max of the pool in each row at each batch; both broadcast."""
        last = len(BATCH_SIZES) - 1
        place = np.clip(np.log2(np.maximum(batch, 1.0)), 0.0, float(last))
        low = np.minimum(place.astype(np.int64), last - 1)
        share = place - low
        below, above = self.values[rows, low], self.values[rows, low + 1]
        return np.asarray(below + share * (above - below))


def _prefix(values: Array) -> Array:
    """[sizes, experts + 1] sums of the first 0, 1, ... experts."""
    return np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)


def _expected_maximum(own: tuple[Array, Array], cap: tuple[Array, Array] | None, n: Array) -> Array:
    """Mean of the maximum over n instances, with own = (mean, variance) of each and cap of the
    average over them; [pools, sizes]. A sum of P(maximum > m), where that is neither 0 nor 1."""
    mean, spread = own[0], np.sqrt(np.maximum(own[1], 1e-12))
    low, high = mean - SPREADS * spread, mean + SPREADS * spread
    if cap is not None:
        level, width = cap[0], np.sqrt(np.maximum(cap[1], 1e-12))
        low = np.maximum(low, level - SPREADS * width)
        high = np.maximum(high, level + SPREADS * width)
    first = np.floor(np.maximum(low, 0.0))
    total = first.copy()
    for step in range(int(np.max(high - first)) + 2):
        m = first + step
        below = _normal_cdf((m + 0.5 - mean) / spread) ** n
        if cap is not None:
            below = below * _normal_cdf((m + 0.5 / n - level) / width)
        total += 1 - below
    return total


def _normal_cdf(x: Array) -> Array:
    """Abramowitz and Stegun 7.1.26; error below 1e-7."""
    z = np.abs(x) / np.sqrt(2)
    t = 1 / (1 + 0.3275911 * z)
    poly = t * (
        0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    )
    tail = 0.5 * poly * np.exp(-z * z)
    return np.asarray(np.where(x >= 0, 1 - tail, tail))


def _inverse_erf(y: Array) -> Array:
    """By bisection on the normal distribution."""
    low, high = np.full_like(y, -8.0), np.full_like(y, 8.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = 2 * _normal_cdf(middle * np.sqrt(2)) - 1 < y
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2
