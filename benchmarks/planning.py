"""A joint plan over up to 1,024 GPUs takes at most 2 s on two cores.

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
from typing import Any

import numpy as np
from benchmarks.support.program import Result, flag, main

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


def measure(options: argparse.Namespace) -> Result:
    answer(*QUESTIONS[0])  # imports and first calls
    seconds: list[list[float]] = [[] for _ in QUESTIONS]
    plans: dict[int, Recommendation] = {}
    for _ in range(options.rounds):
        for index, question in enumerate(QUESTIONS):
            start = time.perf_counter()
            plans[index] = answer(*question)
            seconds[index].append(time.perf_counter() - start)
    rows = [row(QUESTIONS[index], seconds[index], plan) for index, plan in plans.items()]
    return {"rows": rows, "sampled_table_s": sampled_seconds(options.rounds)}


def problem(model: str, system: str, demand: ServiceDemand, tpot_ms: float, gpus: int) -> Problem:
    oracle = Oracle.build(model, system)
    routing: ActivationSource = uniform(oracle.model.moe.num_experts, oracle.model.moe.router.top_k)
    return Problem(
        oracle=oracle,
        activation=routing,
        lengths=RequestLengths(isl=1024, osl=512),
        demand=demand,
        tpot_s=tpot_ms / 1e3,
        max_gpus=gpus,
    )


def answer(
    model: str, system: str, demand: ServiceDemand, tpot_ms: float, gpus: int
) -> Recommendation:
    return recommend(problem(model, system, demand, tpot_ms, gpus))


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
    """Counts pairs of pool sizes that the GPUs allow, before slots, plans and copies."""
    grid = PoolSearch(question, PoolStyle()).grid
    return 0 if grid is None else int((grid.gpus <= question.max_gpus).sum())


def sampled_seconds(rounds: int) -> float:
    """Returns the median time of a max_activated table from drawn routing.

    160 experts, pools of 6 to 64; the first call, which compiles, is not counted.
    """
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
    main(__doc__, measure, flag("--rounds", type=int, default=7))
