"""The planner takes the published shapes under the published assumptions, for objectives it prints.

    python -m paper.shapes --json paper/results/shapes.json

Without those assumptions it says what the hardware would do.

DeepSeek-V2 in bfloat16 on 4 nodes x 8 H100, 27 slots, 16 tokens in and 256 out (arXiv 2512.13525,
section 7). First the two constants of the `paper` calibration are fitted to the published points,
and the popularity of experts to figure 17. Then, for each batch and objective, what janus and the
three baselines choose under each calibration, and the objectives for which a published shape is the
choice.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
from benchmarks.support.program import Result, main
from benchmarks.support.report import print_table

from janus_moe.planner.latency import Oracle
from janus_moe.planner.search.activation import (
    CachedActivation,
    MaxActivatedGrid,
    lognormal,
    uniform,
)
from janus_moe.planner.search.answers import Answer, Deployment
from janus_moe.planner.search.baselines import CONFIGS, BaselinePlanner
from janus_moe.planner.search.paper import (
    LAYER_S,
    PUBLISHED,
    PUBLISHED_AMAX,
    ROUTING_SPREAD,
    SLOTS,
    TOKEN_S,
    PublishedPoint,
    calibrated,
)
from janus_moe.planner.search.problem import Concurrency, PoolStyle, Problem, RequestLengths
from janus_moe.planner.search.search import PoolSearch

MODEL, SYSTEM, GPUS = "deepseek-v2", "h100_sxm", 32
OBJECTIVES_MS = (100, 125, 150, 160, 175, 200, 250)
PICKS = {64: "1A6E", 256: "2A6E", 512: "4A6E"}
STYLE = PoolStyle(slots=SLOTS, micro_batches=(1,))
"""Of the paper: gating on the expert side, 27 slots, no micro-batches."""
RATIOS = {"sglang": 4.7, "sglang-dp": 4.7, "megascale-infer": 2.2, "xdeepserve": 3.3}


def measure(_: argparse.Namespace) -> Result:
    spread, amax_error = fit_routing()
    constants = fit_constants()
    print(
        f"shipped: {1e3 * LAYER_S:.2f} ms per layer, {1e6 * TOKEN_S:.1f} us per layer and token of "
        "an attention instance"
    )
    points = [published_row(point) for point in PUBLISHED]
    oracles = {
        "honest": Oracle.build(MODEL, SYSTEM),
        "constant only": constant_only(),
        "paper": calibrated(Oracle.build(MODEL, SYSTEM), "paper"),
    }
    cells = [
        cell(name, oracle, batch, ms)
        for name, oracle in oracles.items()
        for batch in (*PICKS, 1024)
        for ms in OBJECTIVES_MS
    ]
    intervals = [interval(oracles["paper"], batch, shape) for batch, shape in PICKS.items()]
    peaks = [peak(name, [c for c in cells if c["calibration"] == name]) for name in oracles]
    for table in (points, cells, intervals, peaks):
        print_table(table)
    return {
        "planners": {name: config.lines() for name, config in CONFIGS.items()},
        "routing_spread": spread,
        "routing_rms_error": amax_error,
        "fitted": {"layer_s": constants[0], "token_s": constants[1]},
        "published": points,
        "cells": cells,
        "intervals": intervals,
        "peak_ratios": peaks,
    }


def question(oracle: Oracle, batch: float, tpot_ms: float, spread: float) -> Problem:
    model = oracle.model
    routing = (
        lognormal(model.moe.num_experts, model.moe.router.top_k, spread)
        if spread
        else uniform(model.moe.num_experts, model.moe.router.top_k)
    )
    return Problem(
        oracle=oracle,
        activation=CachedActivation(routing),
        lengths=RequestLengths(isl=16, osl=256),
        prefill="excluded",  # the paper evaluates decoding only
        demand=Concurrency(batch),
        tpot_s=tpot_ms / 1e3,
        max_gpus=GPUS,
    )


def fit_routing() -> tuple[float, float]:
    """Returns (spread, rms relative error) of the activated experts of six instances."""
    batches = np.array(list(PUBLISHED_AMAX), np.float64)
    published = np.array(list(PUBLISHED_AMAX.values()))

    def error(spread: float) -> float:
        table = lognormal(160, 6, spread).table(np.array([6]), np.array([SLOTS]), "exact")
        own = MaxActivatedGrid(table).at(np.zeros(1, np.int64), batches)
        return float(np.sqrt(np.mean((own / published - 1) ** 2)))

    spreads = np.arange(0.5, 3.01, 0.1)
    best = min(spreads.tolist(), key=error)
    return best, error(best)


def tpot_of(oracle: Oracle, point: PublishedPoint, spread: float) -> float:
    """Returns the seconds of a published shape at its batch, with its best exchange plan."""
    search = PoolSearch(question(oracle, point.batch, 1e4, spread), STYLE)
    shapes = search.shapes(np.array([point.num_attention]), np.array([point.num_expert]))
    return float(shapes.tpot_s(np.array([float(point.batch)])).min())


def fit_constants() -> tuple[float, float]:
    """Returns seconds (per layer, per layer and token of an attention instance), least squares."""
    honest = Oracle.build(MODEL, SYSTEM)
    layers = honest.model.num_layers
    rows = [[1.0, point.batch / point.num_attention] for point in PUBLISHED]
    missing = [(p.tpot_s - tpot_of(honest, p, ROUTING_SPREAD)) / layers for p in PUBLISHED]
    found, *_ = np.linalg.lstsq(np.array(rows), np.array(missing), rcond=None)
    return float(found[0]), float(found[1])


def constant_only() -> Oracle:
    """Makes an oracle with the mean of what the published points miss, whatever the batch."""
    honest = Oracle.build(MODEL, SYSTEM)
    missing = [p.tpot_s - tpot_of(honest, p, ROUTING_SPREAD) for p in PUBLISHED]
    each = float(np.mean(missing)) / honest.model.num_layers
    over = honest.overheads
    more = replace(over, attention_layer_s=over.attention_layer_s + each)
    return replace(honest, overheads=more)


def published_row(point: PublishedPoint) -> dict[str, Any]:
    honest = Oracle.build(MODEL, SYSTEM)
    own = tpot_of(honest, point, ROUTING_SPREAD)
    return {
        "shape": f"{point.num_attention}A{point.num_expert}E",
        "batch": point.batch,
        "published_ms": 1e3 * point.tpot_s,
        "honest_ms": 1e3 * own,
        "paper_calibration_ms": 1e3 * tpot_of(calibrated(honest, "paper"), point, ROUTING_SPREAD),
        "missing_ms_per_layer": 1e3 * (point.tpot_s - own) / honest.model.num_layers,
    }


def cell(name: str, oracle: Oracle, batch: int, tpot_ms: float) -> dict[str, Any]:
    """Makes a row of what every planner chooses."""
    ask = question(oracle, batch, tpot_ms, ROUTING_SPREAD)
    row: dict[str, Any] = {"calibration": name, "batch": batch, "objective_ms": tpot_ms}
    for planner in CONFIGS:
        changes: dict[str, object] = {"slots": SLOTS}
        if planner == "janus":
            changes["micro_batches"] = (1,)
        answer = BaselinePlanner.of(planner, ask, **changes).solve(ask)
        row[planner] = shape_of(answer)
        row[f"{planner} tpg"] = answer.tokens_per_s_per_gpu if isinstance(answer, Deployment) else 0
    return row


def shape_of(answer: Answer) -> str:
    return answer.shape if isinstance(answer, Deployment) else "-"


def interval(oracle: Oracle, batch: int, shape: str) -> dict[str, Any]:
    """Finds the objectives, in whole milliseconds, for which janus chooses `shape`."""
    chosen = []
    for ms in range(60, 301):
        found = PoolSearch(question(oracle, batch, ms, ROUTING_SPREAD), STYLE).cheapest()
        if found and found[0].shape == shape:
            chosen.append(ms)
    return {
        "batch": batch,
        "shape": shape,
        "from_ms": min(chosen, default=None),
        "to_ms": max(chosen, default=None),
    }


def peak(name: str, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Finds the largest ratio of tokens/s/GPU over each baseline, where both are possible."""
    row: dict[str, Any] = {"calibration": name}
    for baseline, published in RATIOS.items():
        found = [
            (c["janus tpg"] / c[f"{baseline} tpg"], c["batch"], c["objective_ms"])
            for c in cells
            if c["janus tpg"] and c[f"{baseline} tpg"]
        ]
        best = max(found, default=(0.0, 0, 0))
        row[baseline] = f"{best[0]:.2f} at B={best[1]}, {best[2]} ms (published {published})"
    return row


if __name__ == "__main__":
    main(__doc__, measure)
