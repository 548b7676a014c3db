"""Claim: a joint plan over up to 1,024 GPUs takes at most 2 s on two cores.

    python -m benchmarks.planning --json benchmarks/results/planning.json

Each question is asked `--rounds` times, all of them in turns, from nothing (no table is kept):
search over both pools, slots, exchange plans, micro-batches and copies, the monolithic candidate
and the verdict. Routing is uniform; with a trace, Monte Carlo comes on top and is timed
apart. The interpreter's start and imports are not part of it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.support.report import machine_facts, print_table, write_json

from janus_moe.planner.latency import Oracle
from janus_moe.planner.search.activation import ActivationSource, uniform
from janus_moe.planner.search.problem import (
    Concurrency,
    PoolStyle,
    Problem,
    Rate,
    RequestLengths,
    Saturate,
    ServiceDemand,
)
from janus_moe.planner.search.recommend import Recommendation, recommend
from janus_moe.planner.search.sampled import SampledActivation
from janus_moe.planner.search.search import PoolSearch
from janus_moe.policy.synthetic import SyntheticRouter

QUESTIONS: tuple[tuple[str, str, ServiceDemand, float, int], ...] = (
    ("deepseek-v2", "h100_sxm", Rate(2_000), 50, 1024),
    ("deepseek-v2", "h100_sxm", Rate(200_000), 100, 1024),
    ("deepseek-v2", "h100_sxm", Rate(2_000_000), 100, 1024),
    ("deepseek-v3", "h200_sxm", Rate(500_000), 50, 1024),
    ("deepseek-v3", "h200_sxm", Rate(1e9), 50, 1024),  # impossible: everything is looked at
    ("deepseek-v3", "h200_sxm", Rate(1_000), 1, 1024),  # impossible: no shape is as fast
    ("deepseek-v3", "h200_sxm", Saturate(), 50, 1024),
    ("qwen3-235b-a22b", "h100_sxm", Concurrency(20_000), 50, 1024),
    ("qwen3-30b-a3b", "h100_sxm", Rate(20_000), 30, 64),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    for question in QUESTIONS[:1]:
        answer(*question)  # imports and first calls
    seconds: list[list[float]] = [[] for _ in QUESTIONS]
    plans: list[Recommendation | None] = [None] * len(QUESTIONS)
    for _ in range(arguments.rounds):
        for index, question in enumerate(QUESTIONS):
            took, plans[index] = timed(lambda question=question: answer(*question))  # type: ignore[misc]
            seconds[index].append(took)
    rows = [
        row(question, own, plan)
        for question, own, plan in zip(QUESTIONS, seconds, plans, strict=True)
        if plan is not None
    ]
    print_table(rows)
    trace = sampled_seconds(arguments.rounds)
    print(f"a_max table from routing (160 experts, pools of 6 to 64): {trace:.2f} s, median")
    if arguments.json:
        content = {"machine": machine_facts(), "plans": rows, "sampled_table_s": trace}
        write_json(arguments.json, content)


def problem(model: str, system: str, demand: ServiceDemand, tpot_ms: float, gpus: int) -> Problem:
    oracle = Oracle.build(model, system)
    routing: ActivationSource = uniform(oracle.model.moe.num_experts, oracle.model.moe.router.top_k)
    return Problem(
        oracle=oracle,
        activation=routing,
        workload=RequestLengths(isl=1024, osl=512),
        demand=demand,
        tpot_s=tpot_ms / 1e3,
        max_gpus=gpus,
    )


def answer(
    model: str, system: str, demand: ServiceDemand, tpot_ms: float, gpus: int
) -> Recommendation:
    return recommend(problem(model, system, demand, tpot_ms, gpus))


def timed(work: Callable[[], Recommendation]) -> tuple[float, Recommendation]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def row(
    question: tuple[str, str, ServiceDemand, float, int], seconds: list[float], plan: Recommendation
) -> dict[str, Any]:
    model, system, demand, tpot_ms, gpus = question
    return {
        "model": model,
        "system": system,
        "demand": str(demand),
        "tpot_ms": tpot_ms,
        "gpus": gpus,
        "pairs": pairs(problem(*question)),
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "best": plan.best.shape if plan.best else "-",
        "pools": plan.pools[0].shape if plan.pools else "-",
    }


def pairs(question: Problem) -> int:
    """Pairs of pool sizes that the GPUs allow, before slots, plans, micro-batches and copies."""
    grid = PoolSearch(question, PoolStyle()).grid
    return 0 if grid is None else int((grid.gpus <= question.max_gpus).sum())


def sampled_seconds(rounds: int) -> float:
    """Median time of a table from drawn routing; the first call, which compiles, is not counted."""
    router = SyntheticRouter("topics", 160, 6)
    ids = router.batch(4096, np.random.default_rng(0))
    counts = np.bincount(ids.ravel(), minlength=160)[None]
    instances = np.arange(6, 65)
    slots = np.ceil(160 * 1.25 / instances).astype(np.int64)
    seconds = []
    for _ in range(rounds + 1):
        source = SampledActivation("topics", [router.batch], counts, 4096)
        start = time.perf_counter()
        source.table(instances, slots, "exact")
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
