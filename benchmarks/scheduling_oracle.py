"""An independent judge of `exact`: the smallest maximum by maximum flow (scipy)."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix  # type: ignore[import-untyped,import-not-found,unused-ignore]
from scipy.sparse.csgraph import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
    maximum_flow,
)

from janus_moe.policy.activation import LayerLayout, Scheduler


def check_optimality(num_cases: int, seed: int = 0) -> dict[str, Any]:
    """Random layouts and batches: the answer can be reached, one less cannot."""
    rng = np.random.default_rng(seed)
    began = time.perf_counter()
    mismatches, not_certified, repaired = 0, 0, 0
    for _ in range(num_cases):
        ids, layout = random_case(rng)
        answer = Scheduler(layout).schedule(ids)
        peak = int(answer.activated.max())
        active = np.unique(ids[ids >= 0])
        good = can_hold(layout, active, peak) and (
            peak == 0 or not can_hold(layout, active, peak - 1)
        )
        mismatches += not good
        not_certified += not answer.optimal
        repaired += int(Scheduler(layout, "aebs").schedule(ids).activated.max()) > peak
    return {
        "cases": num_cases,
        "mismatches": mismatches,
        "not_certified": not_certified,
        "greedy_was_worse": repaired,
        "seconds": round(time.perf_counter() - began, 1),
    }


def random_case(rng: np.random.Generator) -> tuple[NDArray[np.int32], LayerLayout]:
    """1 to 256 experts on 1 to 32 instances, 1 to 4 replicas, weakly or widely linked."""
    experts, instances = int(rng.integers(1, 257)), int(rng.integers(1, 33))
    copies = rng.integers(1, min(4, instances) + 1, experts)
    copies[rng.random(experts) < rng.random()] = 1
    favour = rng.random(instances) ** rng.integers(0, 4)  # some instances hold more than others
    keys = np.log(rng.standard_exponential((experts, instances))) - np.log(favour + 1e-9)
    order = np.argsort(keys, axis=1)
    hosts = np.full((experts, int(copies.max())), -1, np.int32)
    for expert, count in enumerate(copies.tolist()):
        hosts[expert, :count] = np.sort(order[expert, :count])
    tokens, top_k = int(rng.integers(1, 65)), int(rng.integers(1, 9))
    ids = rng.integers(-1, experts, (tokens, top_k)).astype(np.int32)
    return ids, LayerLayout(hosts, instances)


def can_hold(layout: LayerLayout, active: NDArray[np.int32], capacity: int) -> bool:
    """Whether `capacity` experts per instance are enough: source - experts - instances - sink."""
    count, instances = len(active), layout.num_instances
    hosts = layout.hosts[active]
    expert, column = np.nonzero(hosts >= 0)
    source, sink = count + instances, count + instances + 1
    tails = np.concatenate([np.full(count, source), expert, np.arange(count, source)])
    heads = np.concatenate(
        [np.arange(count), count + hosts[expert, column], np.full(instances, sink)]
    )
    room = np.concatenate([np.ones(count + len(expert)), np.full(instances, capacity)])
    graph = csr_matrix((room.astype(np.int32), (tails, heads)), shape=(sink + 1, sink + 1))
    return int(maximum_flow(graph, source, sink).flow_value) == count
