"""Which pairs of pool sizes meet a demand within the objective, with how many copies.

TPOT does not fall with the batch, so a shape is judged at the largest batch it may have,
min(demand * objective, memory). What cannot meet it is ruled out before it is evaluated: rows of
the grid where attention alone takes too long, then columns where the experts alone do, for all
numbers of copies at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from janus_moe.errors import ConfigError
from janus_moe.planner.latency.arrays import Array, Bools, Ints
from janus_moe.planner.search.activation import BATCH_SIZES, MaxActivatedGrid
from janus_moe.planner.search.exchanges import no_exchange
from janus_moe.planner.search.grid import ShapeGrid, parts
from janus_moe.planner.search.prefill import StepTimes
from janus_moe.planner.search.problem import Concurrency, Problem, Rate, Saturate
from janus_moe.planner.search.shapes import Shapes

RISES = 3
"""Steps towards the batch at which a TTFT is judged."""


class Band(NamedTuple):
    """Shapes for one number of copies.

    first: row of the grid that `allowed` [rows, m] begins with.
    """

    copies: int
    first: int
    allowed: Bools

    @property
    def rows(self) -> Ints:
        return self.first + np.arange(len(self.allowed))


def feasible_shapes(grid: ShapeGrid, low: int, high: int, max_copies: int) -> tuple[Ints, Ints]:
    """([shapes, 2] positions in the grid, copies) of shapes that meet the demand, all
    copies together on more than `low` and up to `high` GPUs; the most copies first."""
    places, copies = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.int64)]
    bands = list(_bands(grid, low, high, max_copies))
    if bands:
        for band, good in zip(bands, _Scan(grid, bands).found(), strict=True):
            where = np.argwhere(good)
            places.append(where + np.array([band.first, 0]))
            copies.append(np.full(len(where), band.copies))
    return np.concatenate(places), np.concatenate(copies)


def _bands(grid: ShapeGrid, low: int, high: int, max_copies: int) -> Iterator[Band]:
    num_attention, num_expert = grid.num_attention[:, 0], grid.num_expert[0]
    for copies in range(min(max_copies, high // grid.least), 0, -1):
        fewest, most = low // copies + 1, high // copies
        begin = int(np.searchsorted(num_attention, fewest - num_expert[-1]))
        end = int(np.searchsorted(num_attention, most - num_expert[0], "right"))
        gpus = grid.gpus[begin:end]
        allowed = (gpus >= fewest) & (gpus <= most) & (gpus % grid.style.gpu_step == 0)
        if allowed.any():
            yield Band(copies, begin, allowed)


@dataclass(frozen=True, eq=False)
class _Scan:
    """All options of all bands."""

    grid: ShapeGrid
    bands: Sequence[Band]

    def found(self) -> list[Bools]:
        """For each band [rows, m]."""
        found = [np.zeros_like(band.allowed) for band in self.bands]
        for option in range(self.grid.num_options):
            self._add(option, found)
        return found

    def _add(self, option: int, found: list[Bools]) -> None:
        """Marks in `found` what meets the demand with this option and is not found yet."""
        places = [
            np.nonzero(possible & ~done)
            for possible, done in zip(self._possible(option), found, strict=True)
        ]
        sizes = [len(row) for row, _ in places]
        row, copies = (
            np.concatenate(one)
            for one in zip(
                *(
                    (band.first + row, np.full(len(row), band.copies))
                    for band, (row, _) in zip(self.bands, places, strict=True)
                ),
                strict=True,
            )
        )
        column = np.concatenate([column for _, column in places])
        good = np.zeros(len(row), np.bool_)
        for part in parts(len(row)):
            good[part] = self._meets_demand(option, row[part], column[part], copies[part])
        ends = np.cumsum(sizes)
        for done, place, end, size in zip(found, places, ends, sizes, strict=True):
            done[place] = good[end - size : end]

    def _meets_demand(self, option: int, row: Ints, column: Ints, copies: Ints) -> Bools:
        problem = self.grid.problem
        one = self.grid.at(np.full(len(row), option), row, column)
        batch, limit = judged_at(problem, copies, one.most_tokens)
        good = np.asarray(batch >= 1)
        good[good] = one.take(good).step_s(batch[good]) <= limit[good]
        if problem.prefill == "included":  # it only takes longer
            good[good] = one.take(good).tpot_s(batch[good]) <= limit[good]
        if problem.ttft_s is not None:
            good[good] = starts_in_time(problem, one.take(good).times, copies[good], batch[good])
        return good

    # What is possible at all

    def _possible(self, option: int) -> list[Bools]:
        """For each band [rows, m]."""
        rows = self._rows[option % len(self.grid.micro_batches)]
        return [
            band.allowed & row[:, None] & column[None, :]
            for band, row, column in zip(self.bands, rows, self._columns[option], strict=True)
        ]

    @cached_property
    def _ends(self) -> list[int]:
        """Where the rows of each band but the last end among all of them."""
        return list(np.cumsum([len(band.allowed) for band in self.bands])[:-1])

    @cached_property
    def _batches(self) -> tuple[Array, Array]:
        """Of all rows: (least batch at which a shape is judged, 0: none; longest step)."""
        grid, row = self.grid, np.concatenate([band.rows for band in self.bands])
        copies = np.concatenate([np.full(len(b.allowed), b.copies) for b in self.bands])
        batch, limit = judged_at(grid.problem, copies, grid.most_of_attention[row])
        fitting = grid.most_of_experts[grid.most_of_experts >= 1]
        least = np.maximum(np.minimum(batch, fitting.min(initial=np.inf)), 1.0)
        return np.where((batch >= 1) & bool(fitting.size), least, 0.0), limit

    @cached_property
    def _rows(self) -> list[list[Bools]]:
        """By number of micro-batches, for each band [rows]: whether attention meets the demand when
        experts and exchanges take no time."""
        grid, row = self.grid, np.concatenate([band.rows for band in self.bands])
        batch, limit = self._batches
        last = np.full(len(row), grid.num_expert.shape[1] - 1)
        found = []
        for micro_batches in grid.micro_batches:
            alone = Shapes(
                problem=grid.problem,
                gating=grid.style.gating,
                amax=MaxActivatedGrid(np.zeros((1, len(BATCH_SIZES)))),
                num_attention=grid.num_attention[row, 0],
                num_expert=grid.num_expert[0, last],
                slots=grid.slots[0, last],
                rows=np.zeros_like(last),
                micro_batches=np.full(len(row), micro_batches),
                most_tokens=batch,
                exchange_plans=grid.style.exchange_plans,
                fastest=no_exchange(len(row)),
            )
            good = np.asarray(batch >= 1)
            good[good] = alone.take(good).tpot_s(batch[good]) <= limit[good]
            found.append(np.split(good, self._ends))
        return found

    @cached_property
    def _columns(self) -> list[list[Bools]]:
        """By option, for each band [m]: whether experts meet the demand at the least batch of the
        possible rows, on as many attention instances as these have at most."""
        return [self._columns_of(option) for option in range(self.grid.num_options)]

    def _columns_of(self, option: int) -> list[Bools]:
        grid, rows = self.grid, self._rows[option % len(self.grid.micro_batches)]
        batches, limits = (np.split(one, self._ends) for one in self._batches)
        found: list[Bools] = []
        lists: list[tuple[Ints, Ints, Array, Array]] = []
        for band, row, batch, limit in zip(self.bands, rows, batches, limits, strict=True):
            good: Bools = np.any(band.allowed[row], axis=0)
            found.append(good)
            if good.any():
                column, every = np.flatnonzero(good), np.ones(int(good.sum()))
                last = np.full(len(column), band.rows[row].max())
                lists.append((column, last, batch[row].min() * every, limit[row].max() * every))
        if lists:
            column, last, least, most = (np.concatenate(one) for one in zip(*lists, strict=True))
            one = grid.at(np.full(len(column), option), last, column)
            idle = replace(one, amax=self._least_activated, fastest=no_exchange(len(column)))
            seconds = idle.step_s(least)
            kept = (one.most_tokens >= 1) & (seconds <= most)
            end = 0
            for good in found:
                begin, end = end, end + int(good.sum())
                good[good] = kept[begin:end]
        return found

    @cached_property
    def _least_activated(self) -> MaxActivatedGrid:
        """a_max of no larger batch is below: what was sampled may fall."""
        values = self.grid.amax.values
        return MaxActivatedGrid(np.minimum.accumulate(values[:, ::-1], axis=1)[:, ::-1])


def starts_in_time(
    problem: Problem, times: Callable[[Array], StepTimes], copies: Ints, most: Array
) -> Bools:
    """Whether shapes that meet the demand may meet the TTFT objective.

    They are judged at no more than the batch that the demand keeps under way, to which
    B = lambda * TPOT(B) rises from 1.

    times: from batches.
    copies: [shapes] of each.
    most: [shapes] largest of these batches.
    """
    demand, batch = problem.demand, most
    assert problem.ttft_s is not None
    if isinstance(demand, Rate):
        batch = np.ones_like(most)
        for _ in range(RISES):
            batch = np.clip(demand.tokens_per_s / copies * times(batch).tpot, 1.0, most)
    return np.asarray(times(batch).ttft <= problem.ttft_s)


def judged_at(problem: Problem, copies: Ints, most: Array) -> tuple[Array, Array]:
    """(batch at which shapes are judged, below 1: they hold none; seconds of a step there).

    most: tokens that a copy holds.
    """
    demand = problem.demand
    if isinstance(demand, Saturate):
        raise ConfigError("a demand without a figure is met by every shape; use `largest`")
    if isinstance(demand, Concurrency):
        wanted = np.maximum(1.0, demand.requests / copies)
        return np.where(most >= wanted, wanted, 0.0), np.full(most.shape, problem.tpot_s)
    each = demand.tokens_per_s / copies
    batch = np.minimum(most, np.maximum(1.0, each * problem.tpot_s))
    return batch, np.minimum(problem.tpot_s, batch / each)
