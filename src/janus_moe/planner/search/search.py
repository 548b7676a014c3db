"""The joint search: attention instances, expert instances, slots, exchange plan, micro-batches,
copies. Exhaustive, in arrays.

TPOT does not fall with the batch, so a shape is feasible exactly when it is at the largest batch
it may have, min(demand * objective, memory): one evaluation of each shape says which are, and only
the cheapest of those are solved for their batch. `reference` does the same one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal

import numpy as np

from janus_moe.planner.latency.arrays import Array, Bools, Ints
from janus_moe.planner.search.activation import MaxActivatedGrid
from janus_moe.planner.search.answers import Deployment
from janus_moe.planner.search.coarse import CLOSE, throughput
from janus_moe.planner.search.feasible import feasible_shapes
from janus_moe.planner.search.grid import ShapeGrid
from janus_moe.planner.search.memory import even_slots, most_slots
from janus_moe.planner.search.problem import PoolStyle, Problem
from janus_moe.planner.search.shapes import Shapes, most_of_attention, most_of_experts
from janus_moe.planner.search.solve import Solver, demanded, largest, one_token, solved

FASTEST = 16
"""Shapes with the shortest steps, of which the one with the lowest TPOT is taken."""

FIRST_GPUS = 32
"""Of the first portion of shapes that is looked at."""

_SIDES: tuple[Literal["attention", "expert"], ...] = ("attention", "expert")


@dataclass(frozen=True, eq=False)
class PoolSearch:
    """All shapes of one style for one question."""

    problem: Problem
    style: PoolStyle

    @cached_property
    def num_expert(self) -> Ints:
        """[pools] sizes of the expert pool that can hold every expert."""
        problem, style = self.problem, self.style
        experts = problem.oracle.model.moe.num_experts
        slots = min(self._fit, experts if style.slots is None else style.slots)
        if slots < 1:
            return np.zeros(0, np.int64)
        most = min(problem.max_gpus - 1, experts, style.max_instances or experts)
        return np.arange(-(-experts // slots), most + 1, dtype=np.int64)

    @cached_property
    def options(self) -> tuple[Ints, MaxActivatedGrid]:
        """([slot options, pools] distinct numbers of slots, their a_max below each other)."""
        problem, style, pools = self.problem, self.style, self.num_expert
        slots = {one.tobytes(): one for one in self._slot_options()}.values()
        tables = [problem.activation.table(pools, one, style.policy) for one in slots]
        return np.stack(list(slots)), MaxActivatedGrid(np.concatenate(tables))

    def cheapest(self, count: int = 1) -> list[Deployment]:
        """The best deployment of each of the `count` best shapes that meet the demand
        within the objective; fewer where there are fewer."""
        found: list[Deployment] = []
        for costs, places, copies in self._feasible():
            done = 0
            while done < costs.size and len(best_of_shapes(found)) < count:
                # All shapes up to a cost, as many as are wanted or more; next time the rest.
                level = costs[min(done + count, costs.size) - 1]
                end = int(np.searchsorted(costs, level, "right"))
                found += self._solve(places[done:end], copies[done:end])
                done = end
            if len(best_of_shapes(found)) >= count:
                break
        return best_of_shapes(found)[:count]

    def largest(self, gpus: int, count: int = 1) -> list[Deployment]:
        """What serves most tokens per second within the objective on up to `gpus` GPUs, of shapes
        that leave fewer GPUs over than one for each copy."""
        grid = self.grid
        if grid is None:
            return []
        places, copies = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.int64)]
        column = np.arange(grid.num_expert.shape[1])[::-1]
        for number in range(1, min(self.problem.max_copies, gpus // 2) + 1):
            step = self.style.gpu_step
            each = gpus // number // step * step
            row = each - grid.num_expert[0, column] - grid.num_attention[0, 0]
            where = np.stack([row, column], axis=1)[(row >= 0) & (row < len(grid.num_attention))]
            places.append(where)
            copies.append(np.full(len(where), number))
        where, numbers = np.concatenate(places), np.concatenate(copies)
        if not len(where):
            return []
        balanced = self.style.balance is None
        coarse = throughput(grid, where, numbers, count if balanced else None)
        least = np.sort(coarse)[-min(count, len(coarse))]
        competitive = (coarse > 0) & ((coarse >= (1 - CLOSE) * least) | (not balanced))
        found = self._solve(where[competitive], numbers[competitive], largest)
        best = best_of_shapes(found, _throughput)
        return best[:count]

    def fastest(self) -> Deployment | None:
        """The lowest TPOT of all shapes, at a batch of one token."""
        grid = self.grid
        if grid is None:
            return None
        allowed = self._stepped & (grid.gpus <= self.problem.max_gpus)
        least = np.where(allowed, grid.fastest_s(), np.inf)
        if not np.isfinite(least).any():
            return None
        first = np.argsort(least, axis=None, kind="stable")[:FASTEST]
        where = np.stack(np.unravel_index(first, least.shape), axis=1)
        where = where[np.isfinite(least[where[:, 0], where[:, 1]])]
        found = self._solve(where, np.ones(len(where), np.int64), one_token)
        return min(found, key=lambda d: (round(d.tpot_s * 1e9), d.rank), default=None)

    @cached_property
    def grid(self) -> ShapeGrid | None:
        """All pairs that the GPUs allow; None: not one."""
        most = self.problem.max_gpus
        if not self.num_expert.size:
            return None
        top = most - int(self.num_expert[0])
        attention = np.arange(1, min(top, self.style.max_instances or top) + 1, dtype=np.int64)
        if not attention.size:
            return None
        return ShapeGrid(
            self.problem,
            self.style,
            attention[:, None],
            self.num_expert[None, :],
            *self.options,
        )

    @cached_property
    def _stepped(self) -> Bools:
        """[n, m] pairs that the style may build."""
        assert self.grid is not None
        stepped: Bools = self.grid.gpus % self.style.gpu_step == 0
        return stepped

    def _feasible(self) -> Iterator[tuple[Array, Ints, Ints]]:
        """(cost, [shapes, 2] position in the grid, copies) of feasible shapes, cheapest first; each
        portion costs more than the one before. Portions are made as they are asked for, each of
        shapes on up to twice as many GPUs."""
        grid, problem = self.grid, self.problem
        if grid is None:
            return
        cheapest_gpu = min(problem.weight_of(side) for side in _SIDES)
        costs, copies = np.zeros(0), np.zeros(0, np.int64)
        places = np.zeros((0, 2), np.int64)
        done, most = grid.least - 1, problem.max_gpus
        while done < most:
            high = min(most, max(2 * done, FIRST_GPUS))
            where, numbers = feasible_shapes(grid, done, high, problem.max_copies)
            costs = np.concatenate([costs, numbers * grid.cost(where[:, 0], where[:, 1])])
            places, copies = np.concatenate([places, where]), np.concatenate([copies, numbers])
            done = high
            later = np.inf if done == most else (done + 1) * cheapest_gpu
            order = np.argsort(costs, kind="stable")
            now, rest = order[costs[order] < later], order[costs[order] >= later]
            yield costs[now], places[now], copies[now]
            costs, places, copies = costs[rest], places[rest], copies[rest]

    def shapes(self, num_attention: Ints, num_expert: Ints) -> Shapes:
        """Given pairs with every option of slots, number of micro-batches and exchange plan, along
        the first axis."""
        slots, amax = self.options
        every = list(
            product(range(len(slots)), self.style.micro_batches, self.style.exchange_plans)
        )
        axis = (-1, *np.ones(np.broadcast(num_attention, num_expert).ndim, np.int64))
        which, micro_batches = (np.array([one[i] for one in every]).reshape(axis) for i in (0, 1))
        columns = num_expert - self.num_expert[0]
        held = slots[which, columns]
        most = np.minimum(
            most_of_attention(self.problem, num_attention),
            most_of_experts(self.problem, num_expert, held),
        )
        return Shapes(
            problem=self.problem,
            gating=self.style.gating,
            num_attention=num_attention,
            num_expert=num_expert,
            slots=held,
            rows=which * len(self.num_expert) + columns,
            amax=amax,
            micro_batches=micro_batches,
            most_tokens=most,
            exchange_plans=tuple(one[2] for one in every),
        )

    @cached_property
    def _fit(self) -> int:
        return most_slots(self.problem.oracle, self.problem.memory)

    def _slot_options(self) -> Iterator[Ints]:
        """[pools] slots per instance, one array for each option."""
        experts, style = self.problem.oracle.model.moe.num_experts, self.style
        if style.slots is not None:
            yield np.full_like(self.num_expert, min(style.slots, experts))
            return
        for redundancy in style.redundancies:
            yield even_slots(experts, self.num_expert, redundancy, self._fit)

    def _solve(self, where: Ints, copies: Ints, solver: Solver = demanded) -> list[Deployment]:
        """Every option for the shapes at these positions [shapes, 2] of the grid, with batches."""
        grid = self.grid
        assert grid is not None
        if not len(where):
            return []
        sizes = grid.num_attention[where[:, 0], 0], grid.num_expert[0, where[:, 1]]
        shapes = self.shapes(*sizes)
        return solved(
            shapes, copies, self.style.policy, solver, lambda batch: self._balanced(shapes, batch)
        )

    def _balanced(self, pools: Shapes, batch: Array) -> Bools:
        """Whether the pools' busy times are as equal as the style wants, or as they can be: one
        attention instance more or less would not bring them closer."""
        limit = self.style.balance
        if limit is None:
            return np.ones(batch.shape, np.bool_)
        here = _imbalance(pools, batch, pools.num_attention)
        more = _imbalance(pools, batch, pools.num_attention + 1)
        fewer = _imbalance(pools, batch, np.maximum(pools.num_attention - 1, 1))
        return np.asarray((here <= limit) | ((here <= more) & (here <= fewer)))


def _imbalance(pools: Shapes, batch: Array, num_attention: Ints) -> Array:
    """Difference of the pools' computing times of a layer and micro-batch over the longer one."""
    problem, rows = pools.problem, batch / pools.micro_batches
    oracle = problem.oracle
    each = rows / num_attention
    attention = oracle.attention_layer_s(each, problem.context)
    attention = attention + oracle.shared_expert_s(each)
    pairs = rows * oracle.model.moe.router.top_k / pools.num_expert
    experts = oracle.moe_layer_s(pools.activated(batch), pairs, rows, pools.slots)
    return np.asarray(np.abs(attention - experts) / np.maximum(attention, experts))


def best_of_shapes(
    found: Sequence[Deployment], key: Callable[[Deployment], Any] = lambda d: d.rank
) -> list[Deployment]:
    """The best of each shape, best first: the lowest key."""
    best: dict[tuple[int, int, int], Deployment] = {}
    for one in found:
        shape = (one.num_attention, one.num_expert, one.copies)
        if shape not in best or key(one) < key(best[shape]):
            best[shape] = one
    return sorted(best.values(), key=lambda d: (key(d), d.num_attention, d.num_expert))


def _throughput(one: Deployment) -> tuple[float, ...]:
    return (-round(one.tokens_per_s, 3), one.cost, one.copies, one.slots)
