"""How many experts the busiest instance will read: a_max of a pool of n_e instances and a batch B.

`monte_carlo` runs the real scheduler on sampled batches; use it wherever there is a trace.
`closed_form` needs only P(active) of each expert, `paper_bound` is the bound of Janus's paper.
For the planner, `MaxActivatedTable` answers between the sampled batch sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from janus_moe.errors import ConfigError
from janus_moe.policy.activation import LayerLayout, Policy, Scheduler

BatchSampler = Callable[[int, np.random.Generator], NDArray[np.int32]]
"""(num_tokens, rng) -> [num_tokens, top_k] ids: a trace's layer or a synthetic router."""

NUM_SAMPLES = 32
"""Batches per estimate; 95 % of such means lie within 0.2 experts of the mean of 640."""


def monte_carlo(
    sample: BatchSampler,
    layout: LayerLayout,
    batch_size: int,
    policy: Policy = "exact",
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
) -> float:
    """Mean a_max of sampled batches under the policy that will run."""
    rng = np.random.default_rng(seed)
    scheduler = Scheduler(layout, policy)
    peaks = [
        int(scheduler.rewrite(sample(batch_size, rng)).activated.max()) for _ in range(num_samples)
    ]
    return float(np.mean(peaks))


def closed_form(layout: LayerLayout, probability: ArrayLike) -> float:
    """Expected a_max if experts are active independently and replicas move freely.

    probability: [experts] P(active) at the batch size in question.

    a_max <= m needs (1) on every instance at most m active experts that live only there and
    (2) at most m * instances active experts in all. Both counts are Poisson-binomial, so the
    chance of both is a convolution. Exact without replicas; with replicas that link few pairs of
    instances the true value is larger (benchmarks/placement.py: 1 to 2 % off on average, at worst
    25 % too low, for small batches on many instances).
    """
    active = _as_probability(probability, layout)
    replicas, num_instances = layout.num_replicas, layout.num_instances
    movable = _poisson_binomial(active[replicas > 1])
    confined = [
        _poisson_binomial(active[(replicas == 1) & (layout.holders[:, 0] == instance)])
        for instance in range(num_instances)
    ]
    expected = 0.0
    for most in range(layout.num_experts):
        in_all = movable
        for alone in confined:
            in_all = np.convolve(in_all, alone[: most + 1])
        above = 1.0 - float(in_all[: most * num_instances + 1].sum())
        if above < 1e-9:
            break
        expected += above
    return expected


def paper_bound(layout: LayerLayout, probability: ArrayLike) -> int:
    """ceil(min(C, a + sqrt(2 a ln n_e)) + 1), with a the largest expected count (section 5 of
    arXiv 2512.13525). A replica counts with its expert's probability divided by its copies.
    """
    active = _as_probability(probability, layout)
    expected, slots = np.zeros(layout.num_instances), np.zeros(layout.num_instances)
    for column in layout.holders.T:
        here = column >= 0
        np.add.at(expected, column[here], (active / layout.num_replicas)[here])
        np.add.at(slots, column[here], 1)
    most = float(expected.max())
    spread = most + np.sqrt(2 * most * np.log(layout.num_instances))
    return int(np.ceil(min(float(slots.max()), spread) + 1))


@dataclass(frozen=True, kw_only=True)
class MaxActivatedTable:
    """Mean a_max by number of expert instances and batch size.

    values: instances -> [batch sizes], as in `batch_sizes`, ascending.
    """

    batch_sizes: tuple[int, ...]
    values: Mapping[int, tuple[float, ...]]

    @classmethod
    def sampled(
        cls,
        sample: BatchSampler,
        layouts: Mapping[int, LayerLayout],
        batch_sizes: Sequence[int],
        policy: Policy = "exact",
        num_samples: int = NUM_SAMPLES,
        seed: int = 0,
    ) -> MaxActivatedTable:
        """layouts: instances -> the placement that a pool of that size would use."""
        sizes = tuple(sorted(set(batch_sizes)))
        if not sizes or sizes[0] < 1:
            raise ConfigError(f"batch sizes must be 1 or more, got {list(batch_sizes)}")
        values = {
            instances: tuple(
                monte_carlo(sample, layout, size, policy, num_samples, seed) for size in sizes
            )
            for instances, layout in layouts.items()
        }
        return cls(batch_sizes=sizes, values=values)

    def max_activated(self, num_instances: int, batch_size: float) -> float:
        """Linear in log B between sampled sizes; beyond them, the nearest."""
        if num_instances not in self.values:
            raise ConfigError(
                f"no a_max for {num_instances} expert instances; the table has "
                f"{sorted(self.values)}"
            )
        if not batch_size > 0:
            raise ConfigError(f"the batch must have more than 0 tokens, got {batch_size}")
        sizes = np.log(self.batch_sizes)
        return float(np.interp(np.log(batch_size), sizes, self.values[num_instances]))


def _poisson_binomial(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n + 1] chances that exactly 0..n of n independent events happen."""
    chances = np.ones(1)
    for p in probability:
        chances = np.append(chances, 0.0) * (1 - p) + np.insert(chances, 0, 0.0) * p
    return chances


def _as_probability(probability: ArrayLike, layout: LayerLayout) -> NDArray[np.float64]:
    active = np.asarray(probability, np.float64)
    if active.shape != (layout.num_experts,) or not ((active >= 0) & (active <= 1)).all():
        raise ConfigError(
            f"probability must be {layout.num_experts} numbers from 0 to 1, got shape "
            f"{active.shape}"
        )
    return active
