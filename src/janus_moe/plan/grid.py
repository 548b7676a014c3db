"""All pairs of pool sizes at once: which of them keep up with a demand within the objective.

An exchange takes `fixed + tokens * each` seconds whatever the plan, so both are computed once for
all pairs and every number of copies; what is left is cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from janus_moe.errors import ConfigError
from janus_moe.perf.arrays import Array
from janus_moe.perf.links import share_reached
from janus_moe.perf.step import StepLoad
from janus_moe.plan.fixed_point import largest_batches
from janus_moe.plan.prefill import MixedStep, tpot_s
from janus_moe.plan.problem import Concurrency, Demand, Problem, Saturate
from janus_moe.plan.shapes import Ints, Pools, with_prompts

Bools = NDArray[np.bool_]

COARSE = 20
"""Steps of bisection that tell good shapes from bad ones."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Attention instances [n, 1] against expert instances [1, m].

    options: one `Pools` of the whole grid for each slots, micro-batches and plan.
    """

    problem: Problem
    num_attention: Ints
    num_expert: Ints
    options: Sequence[Pools]

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_attention.shape[0], self.num_expert.shape[1]

    @cached_property
    def gpus(self) -> Ints:
        """[n, m] of one copy."""
        both: Ints = self.num_attention + self.num_expert
        return both

    @cached_property
    def cost(self) -> Array:
        """[n, m] of one copy."""
        problem = self.problem
        return np.asarray(
            self.num_attention * problem.weight_of("attention")
            + self.num_expert * problem.weight_of("expert")
        )

    def feasible(self, demand: Demand, most_gpus: int) -> Bools:
        """[n', m'] the corner of the grid with pairs of up to `most_gpus`: can they keep up?

        demand: of one copy.
        """
        n, m = self._corner(most_gpus)
        found = np.zeros((n, m), np.bool_)
        for pools in self._one_of_each_plan:
            attention, experts = pools.most_of_attention[:n], pools.most_of_experts[:, :m]
            batch, limit = _largest_batch(self.problem, demand, attention, experts)
            usable = np.maximum(batch, 1.0)
            seconds = self._step_s(pools, usable, (slice(0, n), slice(0, m)))
            good = (batch >= 1) & (seconds <= limit) & (self.gpus[:n, :m] <= most_gpus) & ~found
            if self.problem.prefill == "included":  # it only takes longer
                row, column = np.nonzero(good)
                usable, limit = (
                    np.broadcast_to(one, (n, m))[row, column] for one in (usable, limit)
                )
                good[row, column] = self._tpot_s(pools, usable, (row, column)) <= limit
            found |= good
        return found

    def fastest_s(self) -> Array:
        """[n, m] the shortest step of each pair, at one token; infinite where memory is short."""
        least = np.full(self.shape, np.inf)
        for pools in self._one_of_each_plan:
            seconds = self._step_s(pools, np.ones((1, 1)), (slice(None), slice(None)))
            least = np.minimum(least, np.where(pools.most_tokens >= 1, seconds, np.inf))
        return least

    def throughput(self, where: Ints) -> Array:
        """[shapes] tokens per second of one copy within the objective, to about a percent.

        where: [shapes, 2] positions in the grid.
        """
        row, column = where.T
        best = np.zeros(len(where))
        for pools in self._one_of_each_plan:
            seconds = partial(self._tpot_s, pools, place=(row, column))
            most = pools.most_tokens[row, column]
            batch = largest_batches(seconds, self.problem.tpot_s, most, COARSE)
            usable = np.where(np.isnan(batch), 1.0, batch)
            best = np.maximum(best, np.where(np.isnan(batch), 0.0, usable / seconds(usable)))
        return best

    def _tpot_s(self, pools: Pools, batch: Array, place: tuple[Any, Any]) -> Array:
        """Time per token of the pairs at `place`, prompts included where they are asked for."""
        return tpot_s(
            self.problem,
            batch,
            self.num_attention[place[0], 0],
            self._step_s(pools, batch, place),
            lambda step: self._step_s(pools, step.rows, place, step),
        )

    def _step_s(
        self, pools: Pools, batch: Array, place: tuple[Any, Any], prompts: MixedStep | None = None
    ) -> Array:
        """Steps of the pairs at `place` of the grid with the fastest exchange plan for each."""
        row, column = place
        one_axis = not isinstance(row, slice)
        top = (row, 0) if one_axis else (row, slice(None))
        left = (0, column) if one_axis else (slice(None), column)
        tokens = batch / pools.micro_batches
        load = StepLoad(
            batch=batch,
            context=self.problem.context,
            num_attention=self.num_attention[top],
            num_expert=self.num_expert[left],
            activated=pools.amax.at(pools.rows[left], tokens),
            dispatch_s=self._exchange_s(tokens, place),
            rows=self._rows_arriving(pools, tokens, left),
            slots=pools.slots[left],
            micro_batches=pools.micro_batches,
        )
        if prompts is not None:
            load = with_prompts(load, prompts)
        return self.problem.oracle.step_s(load)

    def _rows_arriving(self, pools: Pools, tokens: Array, left: tuple[Any, Any]) -> Array | None:
        """Rows at an expert instance, where they are not all."""
        if pools.style.gating == "egate":
            return None
        reached = share_reached(self.num_expert[left], self.problem.oracle.model.top_k)
        return np.asarray(tokens * reached)

    def _corner(self, most_gpus: int) -> tuple[int, int]:
        first_attention, first_expert = int(self.num_attention[0, 0]), int(self.num_expert[0, 0])
        n = int(np.searchsorted(self.num_attention[:, 0], most_gpus - first_expert, "right"))
        m = int(np.searchsorted(self.num_expert[0], most_gpus - first_attention, "right"))
        return n, m

    @cached_property
    def _one_of_each_plan(self) -> list[Pools]:
        """Options that differ in more than the exchange plan."""
        first = self.options[0].plan
        return [pools for pools in self.options if pools.plan == first]

    @cached_property
    def _exchanges(self) -> list[tuple[Array, Array]]:
        """For each plan (seconds without tokens, seconds per token), [n, m], both directions."""
        found = []
        for plan in dict.fromkeys(pools.plan for pools in self.options):
            pools = next(one for one in self.options if one.plan == plan)
            loads = [pools.load(tokens * pools.micro_batches, 1.0) for tokens in (1.0, 1025.0)]
            few, many = (np.asarray(load.dispatch_s) + load.combine_s for load in loads)
            each = (many - few) / 1024
            found.append((few - each, each))
        return found

    def _exchange_s(self, tokens: Array, place: tuple[Any, Any]) -> Array:
        """Of the fastest plan."""
        plans = [fixed[place] + tokens * each[place] for fixed, each in self._exchanges]
        return np.asarray(np.minimum.reduce(plans))


def _largest_batch(
    problem: Problem, demand: Demand, attention: Array, experts: Array
) -> tuple[Array, Array]:
    """(batch at which each shape is judged, seconds that its step may take there).

    attention, experts: [n, 1] and [1, m] what memory allows. An axis along which nothing changes
    stays 1, which spares most of the work.
    """
    if isinstance(demand, Saturate):
        raise ConfigError("a demand without a figure is met by every shape; use `largest`")
    if isinstance(demand, Concurrency):
        most = np.minimum(attention, experts)
        batch = np.where(most >= demand.requests, demand.requests, 0.0)
        return batch, np.full_like(batch, problem.tpot_s)
    wanted = max(1.0, demand.tokens_per_s * problem.tpot_s)
    batch = np.minimum(attention, wanted)
    if np.min(batch) >= wanted:
        batch = batch[:1]
    if np.min(experts) < np.max(batch):
        batch = np.minimum(batch, experts)
    return batch, np.minimum(problem.tpot_s, batch / demand.tokens_per_s)
