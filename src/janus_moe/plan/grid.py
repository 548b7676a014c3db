"""All pairs of pool sizes at once: which of them keep up with a demand within the objective.

An exchange takes `fixed + tokens * each` seconds whatever the plan, so both are computed once for
all pairs and every number of copies; what is left is cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from janus_moe.errors import ConfigError
from janus_moe.perf.arrays import Array
from janus_moe.perf.step import StepLoad
from janus_moe.plan.problem import Concurrency, Demand, Problem, Saturate
from janus_moe.plan.shapes import Ints, Pools

Bools = NDArray[np.bool_]


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
            batch, limit = _largest_batch(self.problem, demand, pools.most_tokens[:n, :m])
            usable = np.maximum(batch, 1.0)
            load = StepLoad(
                batch=usable,
                context=self.problem.context,
                num_attention=self.num_attention[:n],
                num_expert=self.num_expert[:, :m],
                activated=pools.amax.at(pools.rows[:, :m], usable / pools.micro_batches),
                dispatch_s=self._exchange_s(usable / pools.micro_batches, n, m),
                slots=pools.slots[:, :m],
                micro_batches=pools.micro_batches,
            )
            found |= (batch >= 1) & (self.problem.oracle.step_s(load) <= limit)
        return found & (self.gpus[:n, :m] <= most_gpus)

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
            pools = next(one for one in self.options if one.plan == plan and one.micro_batches == 1)
            loads = [pools.load(batch, 1.0) for batch in (1.0, 1025.0)]
            few, many = (np.asarray(load.dispatch_s) + load.combine_s for load in loads)
            each = (many - few) / 1024
            found.append((few - each, each))
        return found

    def _exchange_s(self, tokens: Array, n: int, m: int) -> Array:
        """Of the fastest plan."""
        plans = [fixed[:n, :m] + tokens * each[:n, :m] for fixed, each in self._exchanges]
        return np.asarray(np.minimum.reduce(plans))


def _largest_batch(problem: Problem, demand: Demand, most: Array) -> tuple[Array, Array]:
    """(batch at which each shape is judged, seconds that its step may take there)."""
    if isinstance(demand, Saturate):
        raise ConfigError("a demand without a figure is met by every shape; use `largest`")
    if isinstance(demand, Concurrency):
        batch = np.where(most >= demand.requests, demand.requests, 0.0)
        return batch, np.full_like(batch, problem.tpot_s)
    wanted = max(1.0, demand.tokens_per_s * problem.tpot_s)
    room_for_all = np.min(most) >= wanted
    batch = np.full((1, 1), wanted) if room_for_all else np.minimum(most, wanted)
    return batch, np.minimum(problem.tpot_s, batch / demand.tokens_per_s)
