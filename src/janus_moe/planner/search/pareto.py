"""Throughput per GPU against speed per user, over shapes and batches, whatever the demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from janus_moe.planner.latency.arrays import Array, Ints
from janus_moe.planner.search.monolithic import MonolithicSearch
from janus_moe.planner.search.problem import MonolithicStyle, PoolStyle, Problem
from janus_moe.planner.search.recommend import on_one_device
from janus_moe.planner.search.search import PoolSearch
from janus_moe.planner.search.shapes import MonolithicShapes, PoolShapes

BATCHES = np.geomspace(1, 16384, 29)[None, :]
LARGEST = 64
"""GPUs of a copy that are looked at; more copies do not change either axis."""


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One shape at one batch that no other beats in both."""

    shape: str
    batch: float
    tokens_per_s_per_user: float
    tokens_per_s_per_gpu: float


def pools_frontier(problem: Problem, style: PoolStyle) -> list[FrontierPoint]:
    """Of pools of up to `LARGEST` GPUs, fastest for users first."""
    search = PoolSearch(problem, style)
    grid = search.grid
    if grid is None:
        return []
    sums = grid.gpus
    where = np.argwhere((sums <= min(LARGEST, problem.max_gpus)) & (sums % style.gpu_step == 0))
    where = where[:: max(1, len(where) // 300)]
    attention, experts = grid.num_attention[where[:, 0], 0], grid.num_expert[0, where[:, 1]]
    names = [f"{a}A{e}E" for a, e in zip(attention, experts, strict=True)]
    points: list[FrontierPoint] = []
    for pools in search.shapes(attention[:, None], experts[:, None]):
        if pools.plan in (style.plans[0], style.plans[-1]):
            points += _points(pools, names, attention + experts)
    return frontier(points)


def monolithic_frontier(problem: Problem, style: MonolithicStyle) -> list[FrontierPoint]:
    """Of monolithic copies, fastest for users first."""
    search = MonolithicSearch(on_one_device(problem), style)
    rows, tp = search.layouts.T
    sizes = search.sizes[rows]
    names = [
        f"{size} GPUs" + (f" TP{own}" if own > 1 else "")
        for size, own in zip(sizes, tp, strict=True)
    ]
    points: list[FrontierPoint] = []
    for shapes in search.candidates(rows[:, None], tp[:, None]):
        points += _points(shapes, names, sizes)
    return frontier(points)


def frontier(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """Those that no other beats in both, fastest for users first."""
    best: list[FrontierPoint] = []
    for point in sorted(points, key=lambda p: (-p.tokens_per_s_per_user, -p.tokens_per_s_per_gpu)):
        if not best or point.tokens_per_s_per_gpu > best[-1].tokens_per_s_per_gpu:
            best.append(point)
    return best


def _points(
    shapes: PoolShapes | MonolithicShapes, names: Sequence[str], gpus: Ints
) -> list[FrontierPoint]:
    tpot: Array = shapes.tpot_s(BATCHES)
    per_gpu = BATCHES / tpot / gpus[:, None]
    fits = np.broadcast_to(shapes.most_tokens >= BATCHES, tpot.shape)
    return [
        FrontierPoint(
            names[row], float(BATCHES[0, column]), 1 / float(tpot[row, column]), float(value)
        )
        for (row, column), value in np.ndenumerate(per_gpu)
        if fits[row, column]
    ]
