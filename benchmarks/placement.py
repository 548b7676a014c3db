"""Activated experts of the busiest instance: every policy on every placement.

    python -m benchmarks.placement [--quick] [--json FILE.json]

Claims: see `benchmarks.support.activation`; a placement planned on other topics is little worse
than one planned on these; the closed form of a_max is close to Monte Carlo. Routing is synthetic:
160 experts top-6, as DeepSeek-V2 has. `benchmarks.recorded_routing` has a trained model.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from benchmarks.support.activation import (
    KINDS,
    METHODS,
    POLICIES,
    Ids,
    claims,
    even_split,
    print_bounds,
    print_claims,
)
from benchmarks.support.program import Result, flag, main
from benchmarks.support.report import print_table

from janus_moe.policy.activation import LayerLayout
from janus_moe.policy.estimate import closed_form, paper_bound
from janus_moe.policy.placement import PlacementMethod, even_capacity, place_experts
from janus_moe.policy.replay import replay
from janus_moe.policy.statistics import RoutingStatistics, RoutingWindow
from janus_moe.policy.synthetic import SyntheticRouter

NUM_EXPERTS, TOP_K = 160, 6
POOLS = (6, 8, 12, 16, 32)
REPLICATIONS = (1.125, 1.25, 1.5)
BATCH_SIZES = (1, 4, 16, 32, 64, 128, 256, 1024, 4096)
PLANNED_BATCH = 64
TRAINING_BATCHES = 256


def observe(router: SyntheticRouter, rng: np.random.Generator) -> RoutingStatistics:
    """What the statistics of a running system would hold."""
    window = RoutingWindow(1, router.num_experts, TRAINING_BATCHES, coactivation_stride=1)
    for _ in range(TRAINING_BATCHES):
        window.record(0, router.batch(PLANNED_BATCH, rng))
    return window.read()


def plan(method: PlacementMethod, seen: RoutingStatistics, capacity: Sequence[int]) -> LayerLayout:
    load = seen.probability(PLANNED_BATCH) if method == "janus" else seen.tokens
    placed = place_experts(method, load, capacity, coactivation=seen.coactivation)
    return placed.layer_layout(0)


def grid(num_batches: int, pools: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One row per kind, pool, replication and batch size: mean a_max of `policy/placement`."""
    for kind in KINDS:
        router = SyntheticRouter(kind, NUM_EXPERTS, TOP_K, seed=1)
        seen = observe(router, np.random.default_rng(2))
        rng = np.random.default_rng(3)
        tests = {
            size: [router.batch(size, rng) for _ in range(num_batches if size <= 256 else 32)]
            for size in BATCH_SIZES
        }
        for pool, replication in itertools.product(pools, REPLICATIONS):
            redundant = round((replication - 1) * NUM_EXPERTS)
            capacity = even_capacity(NUM_EXPERTS, pool, redundant)
            layouts = {method: plan(method, seen, capacity) for method in METHODS}
            for size, batches in tests.items():
                yield {
                    "kind": kind,
                    "instances": pool,
                    "replication": replication,
                    "batch": size,
                    "even": even_split(batches, pool),
                    "a_max": measure(batches, layouts),
                    **estimates(layouts["janus"], batches),
                }


def measure(
    batches: Sequence[Ids], layouts: Mapping[PlacementMethod, LayerLayout]
) -> dict[str, float]:
    return {
        f"{policy}/{method}": round(float(replay(batches, layout, policy).max_activated.mean()), 4)
        for method, layout in layouts.items()
        for policy in POLICIES
    }


def estimates(layout: LayerLayout, batches: Sequence[Ids]) -> dict[str, float]:
    """From the measured P(active), so that the error is the estimate's own."""
    active = [np.bincount(ids.ravel(), minlength=layout.num_experts) > 0 for ids in batches]
    probability = np.mean(active, axis=0)
    return {
        "closed_form": round(closed_form(layout, probability), 4),
        "paper_bound": float(paper_bound(layout, probability)),
    }


def drift(num_batches: int, seeds: int) -> Iterator[dict[str, Any]]:
    """Planned on topics 0 to 7, tested on 8 to 15, beside one planned on what it is tested on."""
    for pool, replication in itertools.product((8, 16), (1.125, 1.25)):
        capacity = even_capacity(NUM_EXPERTS, pool, round((replication - 1) * NUM_EXPERTS))
        means: dict[str, list[float]] = {}
        for seed in range(seeds):
            old, new = (
                SyntheticRouter("topics", NUM_EXPERTS, TOP_K, seed, topics=range(start, start + 8))
                for start in (0, 8)
            )
            rng = np.random.default_rng(seed)
            before, after = observe(old, rng), observe(new, rng)
            batches = [new.batch(64, rng) for _ in range(num_batches)]
            for method in METHODS:
                for when, seen in (("before", before), ("after", after)):
                    max_activated = replay(
                        batches, plan(method, seen, capacity), "exact"
                    ).max_activated.mean()
                    means.setdefault(f"{method}, planned {when}", []).append(float(max_activated))
        yield {"instances": pool, "replication": replication} | {
            name: float(np.mean(values)) for name, values in means.items()
        }


def estimate_errors(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and largest relative error of the estimates against exact/janus, B >= 4."""
    table = []
    for replication in REPLICATIONS:
        chosen = [r for r in rows if r["replication"] == replication and r["batch"] >= 4]
        true = np.array([r["a_max"]["exact/janus"] for r in chosen])
        line: dict[str, Any] = {"replication": replication}
        for name in ("closed_form", "paper_bound"):
            error = np.array([r[name] for r in chosen]) / true - 1
            line[f"{name} mean |error|"] = float(np.abs(error).mean())
            line[f"{name} lowest"], line[f"{name} highest"] = float(error.min()), float(error.max())
        table.append(line)
    return table


def run(options: argparse.Namespace) -> Result:
    began = time.perf_counter()
    num_batches, pools, seeds = (10, (8, 16), 1) if options.quick else (256, POOLS, 5)
    rows = list(grid(num_batches, pools))
    print_bounds(rows)
    errors = estimate_errors(rows)
    print_table(errors, "Estimates of a_max against Monte Carlo (exact/janus)")
    drifted = list(drift(num_batches, seeds))
    print_table(drifted, "Drift: exact, B = 64, planned on other topics and on the tested ones")
    verdicts = claims(rows)
    print_claims(verdicts, "Claims")
    return {
        "seconds": time.perf_counter() - began,
        "routing": "synthetic",
        "experts": NUM_EXPERTS,
        "top_k": TOP_K,
        "batches_per_cell": num_batches,
        "grid": rows,
        "estimates": errors,
        "drift": drifted,
        "claims": verdicts,
    }


if __name__ == "__main__":
    main(__doc__, run, flag("--quick", action="store_true", help="fewer batches and pools"))
