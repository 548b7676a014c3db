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
    activation_probability,
    place_experts,
    validate_shape,
)
from janus_moe.policy.replay import replay
from janus_moe.policy.routing_trace import RoutingTrace


class Pool(NamedTuple):
    """An expert pool to try: `redundant_experts` replicas per layer beyond one of each expert."""

    num_instances: int
    redundant_experts: int

    def capacity(self, num_experts: int) -> list[int]:
        """[instances] slots per layer, as even as possible."""
        each, more = divmod(num_experts + self.redundant_experts, self.num_instances)
        return [each + (index < more) for index in range(self.num_instances)]


class Cell(NamedTuple):
    """One pool, batch size, policy and placement method.

    a_max: mean over layers and batches of the busiest instance's activated experts.
    even: the same if activated experts could be split evenly.
    """

    num_instances: int
    batch_size: int
    policy: Policy
    method: PlacementMethod
    a_max: float
    even: float


def simulate_routing(
    trace: RoutingTrace,
    pools: Sequence[Pool],
    batch_sizes: Sequence[int],
    choices: Sequence[tuple[Policy, PlacementMethod]],
    num_batches: int = 32,
    seed: int = 0,
) -> list[Cell]:
    """All combinations; the same batches for every policy and placement.

    num_batches: sampled per layer and batch size, tokens drawn from the trace's second half.
    """
    planned_on, judged_on = _halves(trace)
    cells: list[Cell] = []
    for pool in pools:
        validate_shape(trace.num_experts, pool.num_instances, pool.redundant_experts)
        for batch_size in batch_sizes:
            batches = _sample(judged_on, batch_size, num_batches, seed)
            even = _even_split(batches, pool.num_instances)
            for policy, method in choices:
                placement = _plan(planned_on, pool, method, batch_size)
                layers = [
                    replay(batches[layer], placement.layer_layout(layer), policy, seed).a_max.mean()
                    for layer in range(trace.num_layers)
                ]
                mean = float(np.mean(layers))
                cells.append(Cell(pool.num_instances, batch_size, policy, method, mean, even))
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


def _plan(trace: RoutingTrace, pool: Pool, method: PlacementMethod, batch_size: int) -> Placement:
    """The placement that `method` finds from the trace's token counts."""
    num_experts, num_layers = trace.num_experts, trace.num_layers
    counts = np.stack(
        [
            np.bincount(trace.ids[layer].ravel(), minlength=num_experts)
            for layer in range(num_layers)
        ]
    )
    load = counts.astype(np.float64)
    if method != "eplb":  # EPLB weighs tokens, the others the chance of being activated
        load = activation_probability(counts, trace.num_tokens, batch_size)
    together = _coactivation(trace) if method == "coactivation" else None
    return place_experts(method, load, pool.capacity(num_experts), coactivation=together)


def _coactivation(trace: RoutingTrace) -> NDArray[np.float64]:
    """[layers, experts, experts] tokens that activate both."""
    pairs = np.zeros((trace.num_layers, trace.num_experts, trace.num_experts))
    for layer in range(trace.num_layers):
        chosen = np.zeros((trace.num_tokens, trace.num_experts), np.float32)
        np.put_along_axis(chosen, trace.ids[layer].astype(np.int64), 1.0, axis=1)
        pairs[layer] = chosen.T @ chosen
        np.fill_diagonal(pairs[layer], 0.0)
    return pairs
