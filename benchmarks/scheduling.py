"""What one call of the activation scheduler costs.

    python -m benchmarks.scheduling [--quick] [--json FILE.json]

Claims: see `TARGETS`. Cost is per layer call on one thread: finding the activated set, scheduling,
rewriting the ids; inside compiled code and as called from Python. Policies alternate, so that a
busy machine slows all alike; the minimum of many slices is the figure, the median stands beside it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numba
import numpy as np
from benchmarks.support.program import Result, flag, main
from benchmarks.support.report import print_table
from numpy.typing import NDArray

from janus_moe.policy.activation import (
    LayerCost,
    Policy,
    Scheduler,
    TokenAwareScheduler,
    fast,
)
from janus_moe.policy.placement import initial_placement
from janus_moe.policy.statistics import RoutingWindow
from janus_moe.policy.synthetic import SyntheticRouter

SHAPES = ((128, 8, 20), (256, 16, 20), (512, 64, 10), (1024, 64, 20))  # experts, instances, slots
BATCH_SIZES = (1, 4, 16, 64, 256, 1024, 4096)
TOP_K = 8
NUM_BATCHES = 16
POLICIES: tuple[Policy, ...] = ("exact", "aebs", "metro", "random")
COST = LayerCost(expert_ns=10_000, token_ns=150)  # b / a = 0.015: an fp8 expert of DeepSeek-V3
TARGETS = {  # (experts, instances, slots, batch, policy, where) -> us
    (256, 16, 20, 64, "exact", "compiled"): 3.0,
    (256, 16, 20, 1024, "exact", "compiled"): 12.0,
    (256, 16, 20, 64, "exact", "python"): 6.0,
    (256, 16, 20, 1024, "exact", "python"): 16.0,
}

Batches = NDArray[np.int32]


@numba.njit(nogil=True)
def _many(count, batches, state, labels, rewritten):  # type: ignore[no-untyped-def]
    """`count` calls inside compiled code."""
    total = 0
    for index in range(count):
        total += fast.run_and_rewrite(batches[index % batches.shape[0]], *state, labels, rewritten)
    return total


def compiled_call(scheduler: Scheduler, batches: Batches) -> Callable[[int], object]:
    rewritten = np.empty_like(batches[0])
    return lambda count: _many(count, batches, scheduler._state, scheduler._labels, rewritten)


def python_call(call: Callable[[Any], object], batches: Batches) -> Callable[[int], object]:
    views = list(batches)

    def run(count: int) -> None:
        for index in range(count):
            call(views[index % len(views)])

    return run


def timed(run: Callable[[int], object], count: int) -> float:
    began = time.perf_counter()
    run(count)
    return time.perf_counter() - began


def alternate(
    runs: dict[str, Callable[[int], object]], slices: int
) -> dict[str, tuple[float, float]]:
    """Minimum and median us per call of each run, a slice of about a millisecond at a time."""
    counts = {}
    for name, run in runs.items():
        run(2)
        ten_s = min(timed(run, 10) for _ in range(5))  # one may meet another program
        counts[name] = max(4, int(0.01 / max(ten_s, 1e-6)))
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(slices):
        for name, run in runs.items():
            taken[name].append(timed(run, counts[name]) / counts[name] * 1e6)
    return {name: (min(values), float(np.median(values))) for name, values in taken.items()}


def cost_rows(slices: int) -> list[dict[str, Any]]:
    rows = []
    for experts, instances, slots in SHAPES:
        redundant = instances * slots - experts
        layout = initial_placement(1, experts, instances, redundant).layer_layout(0)
        router = SyntheticRouter("topics", experts, TOP_K)
        rng = np.random.default_rng(0)
        for size in BATCH_SIZES:
            batches = np.stack([router.batch(size, rng) for _ in range(NUM_BATCHES)])
            schedulers = {policy: Scheduler(layout, policy) for policy in POLICIES}
            split = Scheduler(layout, "token-split")
            aware = TokenAwareScheduler(layout, COST)
            runs = {f"{p} compiled": compiled_call(s, batches) for p, s in schedulers.items()}
            runs |= {f"{p} python": python_call(s.rewrite, batches) for p, s in schedulers.items()}
            runs["token-split python"] = python_call(split.rewrite, batches)
            runs["token-aware python"] = python_call(aware.rewrite, batches)
            for name, (least, median) in alternate(runs, slices).items():
                policy, where = name.split(" ")
                rows.append(
                    {
                        "experts": experts,
                        "instances": instances,
                        "slots": slots,
                        "batch": size,
                        "policy": policy,
                        "where": where,
                        "min_us": round(least, 3),
                        "median_us": round(median, 3),
                    }
                )
    return rows


def statistics_rows(slices: int) -> list[dict[str, Any]]:
    """What recording one layer's batch costs, with and without co-activation."""
    router = SyntheticRouter("topics", 256, TOP_K)
    rng = np.random.default_rng(0)
    rows = []
    for size in (16, 64, 256, 1024):
        batches = np.stack([router.batch(size, rng) for _ in range(NUM_BATCHES)])
        runs = {}
        for stride in (0, 4, 1):
            window = RoutingWindow(1, 256, coactivation_stride=stride)
            runs[f"stride {stride}"] = python_call(partial(window.record, 0), batches)
        timed = alternate(runs, slices)
        rows.append({"batch": size} | {f"{name}, us": least for name, (least, _) in timed.items()})
    return rows


def token_aware_rows(num_batches: int) -> list[dict[str, Any]]:
    """Cost of the costliest instance, in activated experts (a = 1), 256 experts, 16 x 20 slots."""
    router = SyntheticRouter("topics", 256, TOP_K)
    rng = np.random.default_rng(0)
    seen = np.bincount(router.batch(8192, rng).ravel(), minlength=256)
    layout = initial_placement(1, 256, 16, 64, [seen / seen.max()]).layer_layout(0)
    rows = []
    for size in (64, 256, 1024, 4096):
        sums: dict[str, list[float]] = {}
        for _ in range(num_batches):
            ids = router.batch(size, rng)
            activated = len(np.unique(ids))
            ideal = (COST.expert_ns * activated + COST.token_ns * ids.size) / 16
            sums.setdefault("even split", []).append(ideal)
            for policy in ("token-split", "aebs", "exact"):
                answer = Scheduler(layout, policy).rewrite(ids)
                tokens = np.bincount(answer.labels.ravel(), minlength=16)
                peak = (COST.expert_ns * answer.activated + COST.token_ns * tokens).max()
                sums.setdefault(policy, []).append(float(peak))
            aware = TokenAwareScheduler(layout, COST).rewrite(ids)
            sums.setdefault("token-aware", []).append(aware.cost_ns(COST))
        rows.append(
            {"batch": size}
            | {name: float(np.mean(values)) / COST.expert_ns for name, values in sums.items()}
        )
    return rows


def verdicts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    keys = ("experts", "instances", "slots", "batch", "policy", "where")
    least = {tuple(row[key] for key in keys): row["min_us"] for row in rows}
    table = [
        {"what": " ".join(map(str, key)), "target_us": target, "min_us": least[key]}
        for key, target in TARGETS.items()
    ]
    shape = (256, 16, 20, 64)
    overhead = least[(*shape, "exact", "compiled")] - least[(*shape, "aebs", "compiled")]
    table.append({"what": "exact over aebs, B=64", "target_us": 1.0, "min_us": overhead})
    return table


def measure(options: argparse.Namespace) -> Result:
    slices, batches = (20, 4) if options.quick else (200, 20)
    costs = cost_rows(slices)
    shown = [r for r in costs if r["experts"] == 256 and r["batch"] in (64, 1024)]
    print_table(shown, "us per layer call: set + schedule + rewrite")
    table = verdicts(costs)
    print_table(table, "Claims")
    counting = statistics_rows(slices)
    print_table(counting, "us per recorded layer batch; co-activation of every stride-th token")
    aware = token_aware_rows(batches)
    print_table(aware, "Costliest instance in reads of an expert; a token costs 0.015 of one")
    return {
        "routing": "synthetic topics",
        "cost": costs,
        "targets": table,
        "statistics": counting,
        "token_aware": aware,
    }


if __name__ == "__main__":
    main(__doc__, measure, flag("--quick", action="store_true", help="fewer cases and slices"))
