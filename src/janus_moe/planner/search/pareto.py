"""Throughput per GPU against speed per user, over shapes and batches, whatever the demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from janus_moe.planner.latency.arrays import Ints
from janus_moe.planner.search.monolithic import MonolithicSearch
from janus_moe.planner.search.problem import MonolithicStyle, PoolStyle, Problem
from janus_moe.planner.search.recommend import on_one_device
from janus_moe.planner.search.search import PoolSearch
from janus_moe.planner.search.shapes import Shapes

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
    ends = tuple(dict.fromkeys((style.exchange_plans[0], style.exchange_plans[-1])))
    search = PoolSearch(problem, replace(style, exchange_plans=ends))
    grid = search.grid
    if grid is None:
        return []
    sums = grid.gpus
    where = np.argwhere((sums <= min(LARGEST, problem.max_gpus)) & (sums % style.gpu_step == 0))
    where = where[:: max(1, len(where) // 300)]
    attention, experts = grid.num_attention[where[:, 0], 0], grid.num_expert[0, where[:, 1]]
    names = [f"{a}A{e}E" for a, e in zip(attention, experts, strict=True)]
    pools = search.shapes(attention[:, None], experts[:, None])
    return frontier(_points(pools, names, attention + experts))


def monolithic_frontier(problem: Problem, style: MonolithicStyle) -> list[FrontierPoint]:
    """Of monolithic copies, fastest for users first."""
    search = MonolithicSearch(on_one_device(problem), style)
    rows, tp = search.layouts.T
    if not len(rows):
        return []
    sizes = search.sizes[rows]
    names = [
        f"{size} GPUs" + (f" TP{own}" if own > 1 else "")
        for size, own in zip(sizes, tp, strict=True)
    ]
    shapes = search.shapes(rows[:, None], tp[:, None])
    return frontier(_points(shapes, names, sizes))


def frontier(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """Those that no other beats in both, fastest for users first."""
    best: list[FrontierPoint] = []
    for point in sorted(points, key=lambda p: (-p.tokens_per_s_per_user, -p.tokens_per_s_per_gpu)):
        if not best or point.tokens_per_s_per_gpu > best[-1].tokens_per_s_per_gpu:
            best.append(point)
    return best


def _points(shapes: Shapes, names: Sequence[str], gpus: Ints) -> list[FrontierPoint]:
    tpot = shapes.tpot_s(BATCHES)
    per_gpu = BATCHES / tpot / gpus[:, None]
    fits = np.broadcast_to(shapes.most_tokens >= BATCHES, tpot.shape)
    return [
        FrontierPoint(
            names[place[1]], float(BATCHES[0, place[2]]), 1 / float(tpot[place]), float(value)
        )
        for place, value in np.ndenumerate(per_gpu)
        if fits[place]
    ]
