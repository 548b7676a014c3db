"""Activated experts of the busiest instance: every policy on every placement (paper, figure 13).

Also drift (planned on half of the topics, tested on the other) and the estimates of a_max beside
Monte Carlo (figure 17). All routing is synthetic, and the tables say which.

    python -m benchmarks.placement [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from benchmarks.bound import bound_rows, print_bounds
from benchmarks.support.report import machine_facts, print_table, write_json
from numpy.typing import NDArray

from janus_moe.policy.activation import LayerLayout, Policy
from janus_moe.policy.estimate import closed_form, paper_bound
from janus_moe.policy.placement import PlacementMethod, even_capacity, place_experts
from janus_moe.policy.replay import replay
from janus_moe.policy.statistics import RoutingStatistics, RoutingWindow
from janus_moe.policy.synthetic import SyntheticKind, SyntheticRouter

NUM_EXPERTS, TOP_K = 160, 6  # DeepSeek-V2, as in the paper
POOLS = (6, 8, 12, 16, 32)
REPLICATIONS = (1.125, 1.25, 1.5)
BATCH_SIZES = (1, 4, 16, 32, 64, 128, 256, 1024, 4096)
KINDS: tuple[SyntheticKind, ...] = get_args(SyntheticKind)
METHODS: tuple[PlacementMethod, ...] = get_args(PlacementMethod)
POLICIES: tuple[Policy, ...] = get_args(Policy)
PLANNED_BATCH = 64
TRAINING_BATCHES = 256

Ids = NDArray[np.int32]


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


def even_split(batches: Sequence[Ids], pool: int) -> float:
    """Mean ceil(activated / instances): nothing can be below it."""
    return float(np.mean([-(-len(np.unique(ids)) // pool) for ids in batches]))


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


def claims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The targets, cell by cell, and the cells that miss them."""
    middle = [r for r in rows if r["replication"] >= 1.25 and 16 <= r["batch"] <= 256]
    ours = [(r["a_max"]["exact/janus"], r["a_max"]["aebs/coactivation"], r) for r in middle]
    at_64 = [r for r in rows if r["replication"] == 1.25 and r["batch"] == 64]
    gains = [1 - r["a_max"]["exact/janus"] / r["a_max"]["token-split/eplb"] for r in at_64]
    possible = [
        gain
        for gain, r in zip(gains, at_64, strict=True)
        if r["even"] <= 0.75 * r["a_max"]["token-split/eplb"]
    ]
    worse = [cell(r) for one, other, r in ours if one > other]
    return [
        {
            "claim": "exact/janus <= aebs/coactivation, replication >= 1.25, B 16..256",
            "target": "all cells",
            "measured": f"{len(ours) - len(worse)} of {len(ours)}",
            "misses": worse,
        },
        {
            "claim": "... and lower",
            "target": "3/4 of cells",
            "measured": f"{np.mean([one < other for one, other, _ in ours]):.3f}",
            "misses": [],
        },
        {
            "claim": "exact/janus below token-split/eplb, replication 1.25, B 64",
            "target": ">= 25 %",
            "measured": f"{min(gains):.1%} to {max(gains):.1%}",
            "misses": [cell(r) for r, gain in zip(at_64, gains, strict=True) if gain < 0.25],
        },
        {
            "claim": "... where an even split itself, which nothing can beat, is that much below",
            "target": "all cells",
            "measured": f"{sum(gain >= 0.25 for gain in possible)} of {len(possible)}",
            "misses": [],
        },
    ]


def cell(row: Mapping[str, Any]) -> str:
    names = ("exact/janus", "aebs/coactivation", "token-split/eplb")
    figures = {"even": row["even"]} | {name: row["a_max"][name] for name in names}
    where = f"{row['kind']} n_e={row['instances']} x{row['replication']} B={row['batch']}"
    return f"{where}: " + ", ".join(f"{name} {value:.2f}" for name, value in figures.items())


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/placement.json"))
    parser.add_argument("--quick", action="store_true", help="fewer batches and pools")
    options = parser.parse_args()
    began = time.perf_counter()
    num_batches, pools, seeds = (10, (8, 16), 1) if options.quick else (256, POOLS, 5)

    rows = list(grid(num_batches, pools))
    shown = ("exact/janus", "aebs/janus", "aebs/coactivation", "exact/eplb", "token-split/eplb")
    print("Mean a_max, replication 1.25, B = 64")
    print_table(
        [
            {key: row[key] for key in ("kind", "instances", "even", "closed_form", "paper_bound")}
            | {name: row["a_max"][name] for name in shown}
            for row in rows
            if row["replication"] == 1.25 and row["batch"] == 64
        ]
    )
    print_bounds(bound_rows(rows))
    errors = estimate_errors(rows)
    print("Estimates of a_max against Monte Carlo (exact/janus)")
    print_table(errors)
    drifted = list(drift(num_batches, seeds))
    print("Drift: exact, B = 64, planned on other topics (before) and on the tested ones (after)")
    print_table(drifted)
    verdicts = claims(rows)
    for verdict in verdicts:
        print(f"{verdict['claim']}: {verdict['measured']} (target {verdict['target']})")
        for miss in verdict["misses"]:
            print(f"    {miss}")
    write_json(
        options.json,
        {
            "machine": machine_facts(),
            "seconds": time.perf_counter() - began,
            "routing": "synthetic",
            "experts": NUM_EXPERTS,
            "top_k": TOP_K,
            "batches_per_cell": num_batches,
            "grid": rows,
            "estimates": errors,
            "drift": drifted,
            "claims": verdicts,
        },
    )


if __name__ == "__main__":
    main()
