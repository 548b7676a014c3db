"""Recorded routing through every policy and placement: what the busiest instance would read.

Placements are planned on the first half of a trace and judged on the second, so that none is
judged on what it was fitted to. Knows nothing of files, terminals or time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from janus_moe.errors import ConfigError
from janus_moe.policy.activation import Policy
from janus_moe.policy.placement import (
    Placement,
    PlacementMethod,
    even_capacity,
    place_experts,
)
from janus_moe.policy.replay import replay
from janus_moe.policy.routing_trace import RoutingTrace
from janus_moe.policy.statistics import RoutingStatistics, RoutingWindow


class ExpertPoolSize(NamedTuple):
    """An expert pool to try: `redundant_experts` replicas per layer beyond one of each expert."""

    num_instances: int
    redundant_experts: int


class RoutingResult(NamedTuple):
    """One pool, batch size, policy and placement method.

    a_max: mean over layers and batches of the busiest instance's activated experts.
    even: the same if activated experts could be split evenly.
    """

    num_instances: int
    batch_size: int
    policy: Policy
    method: PlacementMethod
    max_activated: float
    even: float


def simulate_routing(
    trace: RoutingTrace,
    pools: Sequence[ExpertPoolSize],
    batch_sizes: Sequence[int],
    choices: Sequence[tuple[Policy, PlacementMethod]],
    num_batches: int = 32,
    seed: int = 0,
) -> list[RoutingResult]:
    """All combinations; the same batches for every policy and placement.

    num_batches: sampled per layer and batch size, tokens drawn from the trace's second half.
    """
    planned_on, judged_on = _halves(trace)
    seen = observe(planned_on)
    methods = dict.fromkeys(method for _, method in choices)
    cells: list[RoutingResult] = []
    for num_instances, redundant in pools:
        capacity = even_capacity(trace.num_experts, num_instances, redundant)
        for batch_size in batch_sizes:
            batches = _sample(judged_on, batch_size, num_batches, seed)
            even = _even_split(batches, num_instances)
            placements = {
                method: plan_placement(seen, capacity, method, batch_size) for method in methods
            }
            for policy, method in choices:
                max_activated = mean_max_activated(batches, placements[method], policy, seed)
                cells.append(
                    RoutingResult(num_instances, batch_size, policy, method, max_activated, even)
                )
    return cells


def _halves(trace: RoutingTrace) -> tuple[RoutingTrace, RoutingTrace]:
    if len(trace.batch_sizes) < 2:
        raise ConfigError(
            f"the trace has {len(trace.batch_sizes)} batch; record at least 2, one to plan on and "
            "one to judge by"
        )
    return trace.split(len(trace.batch_sizes) // 2)


def _sample(
    trace: RoutingTrace, batch_size: int, num_batches: int, seed: int
) -> list[list[NDArray[np.int32]]]:
    """[layers][batches] ids [batch_size, top_k]."""
    rng = np.random.default_rng((seed, batch_size))
    return [
        [trace.sample(layer, batch_size, rng) for _ in range(num_batches)]
        for layer in range(trace.num_layers)
    ]


def _even_split(batches: list[list[NDArray[np.int32]]], num_instances: int) -> float:
    counts = [-(-len(np.unique(ids)) // num_instances) for layer in batches for ids in layer]
    return float(np.mean(counts))


def observe(trace: RoutingTrace) -> RoutingStatistics:
    """What the statistics of a running system would hold after all of `trace`, every token's pairs
    included."""
    window = RoutingWindow(
        trace.num_layers,
        trace.num_experts,
        window_batches=len(trace.batch_sizes),
        buckets=1,
        coactivation_stride=1,
    )
    for layer in range(trace.num_layers):
        for expert_ids in trace.batches(layer):
            window.record(layer, expert_ids)
    return window.read()


def plan_placement(
    seen: RoutingStatistics, capacity: Sequence[int], method: PlacementMethod, batch_size: int
) -> Placement:
    """capacity: slots of each instance. `janus` weighs the chance of being activated by a batch of
    `batch_size` tokens, as a rebalance does; the others weigh tokens, as their authors do."""
    load = seen.probability(batch_size) if method == "janus" else seen.tokens
    return place_experts(method, load, capacity, coactivation=seen.coactivation)


def mean_max_activated(
    batches: list[list[NDArray[np.int32]]], placement: Placement, policy: Policy, seed: int = 0
) -> float:
    """batches: [layers][batches] ids [tokens, top_k], as many batches in each layer."""
    layers = [
        replay(own, placement.layer_layout(layer), policy, seed).max_activated.mean()
        for layer, own in enumerate(batches)
    ]
    return float(np.mean(layers))
