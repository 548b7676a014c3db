"""Routing that stands in for the paper's traces, which are not public. All of it is synthetic.

`like_paper` has one free parameter, the spread of the experts' popularity. It is fitted to the
four a_max values that the paper prints for six expert instances (figure 17), where 162 slots leave
placement and scheduler almost nothing to choose. All other values of figure 17, and every other
figure, are predictions from it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from janus_moe.policy.activation import LayerLayout, Policy
from janus_moe.policy.estimate import monte_carlo
from janus_moe.policy.placement import PlacementMethod, even_capacity, place_experts
from janus_moe.policy.statistics import RoutingStatistics, RoutingWindow
from janus_moe.policy.synthetic import SyntheticRouter

Sampler = Callable[[int, np.random.Generator], NDArray[np.int32]]

NUM_EXPERTS, TOP_K, SLOTS = 160, 6, 27  # DeepSeek-V2 on H100 80 GB, paper section 7
PAPER_SPREAD = 2.4
"""Of log popularity; `python -m paper.routing` prints the fit."""
FITTED_TO = {16: 8.46, 64: 15.66, 256: 19.98, 512: 20.47}
"""Tokens -> a_max on six expert instances, read from the paper."""
ROUTER_SEED = 1
SAMPLES = 32
OBSERVED_BATCHES, OBSERVED_TOKENS = 64, 64


def popular(spread: float, num_experts: int = NUM_EXPERTS, top_k: int = TOP_K) -> Sampler:
    """Tokens alike; experts differ by weights at the quantiles of a log-normal distribution."""
    levels = [NormalDist().inv_cdf((i + 0.5) / num_experts) for i in range(num_experts)]
    weights = spread * np.random.default_rng(ROUTER_SEED).permutation(levels)

    def sample(num_tokens: int, rng: np.random.Generator) -> NDArray[np.int32]:
        keys = np.log(rng.standard_exponential((num_tokens, num_experts))) - weights
        return np.argpartition(keys, top_k - 1, axis=1)[:, :top_k].astype(np.int32)

    return sample


def like_paper(num_experts: int = NUM_EXPERTS, top_k: int = TOP_K) -> Sampler:
    return popular(PAPER_SPREAD, num_experts, top_k)


def topics(num_experts: int = NUM_EXPERTS, top_k: int = TOP_K) -> Sampler:
    return SyntheticRouter("topics", num_experts, top_k, seed=ROUTER_SEED).batch


def uniform(num_experts: int = NUM_EXPERTS, top_k: int = TOP_K) -> Sampler:
    return SyntheticRouter("uniform", num_experts, top_k, seed=ROUTER_SEED).batch


def observe(sample: Sampler, num_experts: int) -> RoutingStatistics:
    """What the statistics of a running system would hold, of batches of `OBSERVED_TOKENS`."""
    window = RoutingWindow(1, num_experts, OBSERVED_BATCHES, coactivation_stride=1)
    rng = np.random.default_rng(2)
    for _ in range(OBSERVED_BATCHES):
        window.record(0, sample(OBSERVED_TOKENS, rng))
    return window.read()


def place(
    seen: RoutingStatistics, method: PlacementMethod, instances: int, slots: int
) -> LayerLayout:
    """Places experts by what was seen: `janus` by the chance of being active, the others by tokens.

    slots: per instance.
    """
    num_experts = int(seen.tokens.shape[1])
    load = seen.probability(OBSERVED_TOKENS) if method == "janus" else seen.tokens
    spare = min(instances * slots, instances * num_experts) - num_experts
    capacity = even_capacity(num_experts, instances, spare)
    placed = place_experts(method, load, capacity, coactivation=seen.coactivation)
    return placed.layer_layout(0)


class Amax:
    """Mean a_max of one sampler by Monte Carlo, remembered; the real scheduler and placement."""

    def __init__(
        self, sample: Sampler, num_experts: int = NUM_EXPERTS, seed: int = 0, samples: int = SAMPLES
    ) -> None:
        self.sample, self.num_experts, self.seed, self.samples = sample, num_experts, seed, samples
        self.seen = observe(sample, num_experts)
        self.layout = lru_cache(None)(self._layout)
        self.of = lru_cache(None)(self._of)

    def _layout(self, method: PlacementMethod, instances: int, slots: int) -> LayerLayout:
        return place(self.seen, method, instances, slots)

    def _of(
        self,
        instances: int,
        batch: int,
        policy: Policy = "exact",
        method: PlacementMethod = "janus",
        slots: int = SLOTS,
    ) -> float:
        layout = self.layout(method, instances, slots)
        return monte_carlo(self.sample, layout, batch, policy, self.samples, self.seed)


def misfit(spread: float) -> float:
    """Root mean square of the relative errors against `FITTED_TO`."""
    amax = Amax(popular(spread))
    errors = [
        amax.of(6, batch, "aebs", "coactivation") / paper - 1 for batch, paper in FITTED_TO.items()
    ]
    return float(np.sqrt(np.mean(np.square(errors))))


def main() -> None:
    for spread in np.arange(1.8, 3.25, 0.1):
        print(f"spread {spread:.1f}: error {misfit(float(spread)):.1%}")


if __name__ == "__main__":
    main()
