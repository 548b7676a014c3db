"""Throughput of many shapes to about a percent, to tell the few worth solving from the rest.

Bisection for the largest batch within the objective, as `fixed_point.largest_batches` does it, but
a shape is dropped as soon as it is sure to stay below the best: with a batch between `low` and
`high` it serves from low / objective to high / TPOT(low) tokens per second.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from janus_moe.planner.latency.arrays import Array, Bools, Ints
from janus_moe.planner.search.grid import ShapeGrid, parts
from janus_moe.planner.search.shapes import Shapes

COARSE = 20
"""Steps of bisection."""
CLOSE = 0.01
"""Shapes whose coarse throughput is less than this below the best are solved exactly as well."""


def throughput(grid: ShapeGrid, where: Ints, copies: Ints, count: int | None) -> Array:
    """[shapes] tokens per second of all copies within the objective, with the best option.

    where: [shapes, 2] positions in the grid.
    count: shapes that are sure to be more than `CLOSE` below the best `count` get 0; None means no
        shape does.
    """
    shape = np.tile(np.arange(len(where)), grid.num_options)
    option = np.repeat(np.arange(grid.num_options), len(where))
    best = np.zeros(len(where))
    lists: list[_Open] = []
    for part in parts(len(shape)):
        place = where[shape[part]]
        shapes = grid.at(option[part], place[:, 0], place[:, 1])
        lists.append(_Open.of(shapes, shape[part], copies[shape[part]], best))
    for _ in range(COARSE):
        if count is not None:
            competitive = _min_competitive(best, lists, count)
            lists = [one.take(one.most >= competitive) for one in lists]
        lists = [one.narrowed() for one in lists]
    for one in lists:
        np.maximum.at(best, one.shape, one.copies * one.low / one.slow_s)
    return best


def _min_competitive(best: Array, lists: list[_Open], count: int) -> float:
    """What a shape must be able to serve to matter. Two percent are left for rounding and a_max
    that was sampled."""
    least = best.copy()
    for one in lists:
        np.maximum.at(least, one.shape, one.least)
    return (1 - 2 * CLOSE) * float(np.sort(least)[-min(count, len(least))])


@dataclass(frozen=True, eq=False)
class _Open:
    """Shapes whose batch is between low and high.

    shape: which one each is.
    slow_s: TPOT at low.
    """

    shapes: Shapes
    shape: Ints
    copies: Ints
    low: Array
    high: Array
    slow_s: Array

    @classmethod
    def of(cls, shapes: Shapes, shape: Ints, copies: Ints, best: Array) -> _Open:
        """Those that hold a token but not all they have room for; what the others serve goes into
        `best`."""
        limit, most = shapes.problem.tpot_s, shapes.most_tokens
        low, high = np.ones_like(most), np.maximum(most, 1.0)
        slow, top, problem = shapes.times(low), shapes.times(high), shapes.problem
        possible = (most >= 1) & (slow.scaled_latency(problem) <= limit)
        whole = possible & (top.scaled_latency(problem) <= limit)
        np.maximum.at(best, shape[whole], (copies * high / top.tpot)[whole])
        return cls(shapes, shape, copies, low, high, slow.tpot).take(possible & ~whole)

    @property
    def least(self) -> Array:
        """Tokens per second of all copies at least."""
        return np.asarray(self.copies * self.low / self.shapes.problem.tpot_s)

    @property
    def most(self) -> Array:
        return np.asarray(self.copies * self.high / self.slow_s)

    def take(self, kept: Bools) -> _Open:
        if kept.all():
            return self
        return _Open(
            self.shapes.take(kept),
            self.shape[kept],
            self.copies[kept],
            self.low[kept],
            self.high[kept],
            self.slow_s[kept],
        )

    def narrowed(self) -> _Open:
        """One step of bisection."""
        if not len(self.low):
            return self
        middle = (self.low + self.high) / 2
        times, problem = self.shapes.times(middle), self.shapes.problem
        fits = times.scaled_latency(problem) <= problem.tpot_s
        low, high = np.where(fits, middle, self.low), np.where(fits, self.high, middle)
        slow_s = np.where(fits, times.tpot, self.slow_s)
        return replace(self, low=low, high=high, slow_s=slow_s)
