"""Expert parallelism without pools, as a candidate beside the pools and as a baseline.

Every device of a copy holds a share of the experts. Attention is data parallel, every device with
all of it, or divided by heads among 2, 4, ... devices (tensor parallel), as SGLang does it with and
without data-parallel attention: those devices have the same sequences and add up their results in
every layer. They save weights and, with grouped queries, divide the cache; a latent cache is whole
on each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from janus_moe.planner.latency.arrays import Ints
from janus_moe.planner.search.activation import MaxActivatedGrid
from janus_moe.planner.search.answers import Deployment
from janus_moe.planner.search.feasible import judged_at, starts_in_time
from janus_moe.planner.search.memory import even_slots
from janus_moe.planner.search.problem import MonolithicStyle, Problem
from janus_moe.planner.search.shapes import Shapes, most_of_devices
from janus_moe.planner.search.solve import Solver, demanded, largest, one_token, solved


@dataclass(frozen=True, eq=False)
class MonolithicSearch:
    """All sizes and copies of one style for one question. Attention and experts are on the
    oracle's attention device; its expert device must be the same for times to make sense."""

    problem: Problem
    style: MonolithicStyle

    @cached_property
    def sizes(self) -> Ints:
        """Devices of a copy that the GPUs and the experts allow."""
        most = min(self.problem.max_gpus, self.problem.oracle.model.moe.num_experts)
        return np.array([size for size in sorted(self.style.sizes) if size <= most], np.int64)

    @cached_property
    def slots(self) -> Ints:
        """[sizes] experts per device and layer."""
        experts = self.problem.oracle.model.moe.num_experts
        return even_slots(experts, self.sizes, self.style.redundancy, experts)

    def cheapest(self) -> Deployment | None:
        """The cheapest that meets the demand within the objective."""
        rows, tp, copies = self._copies()
        if not len(rows):
            return None
        gpus, shapes = copies * self.sizes[rows], self.shapes(rows, tp)
        batch, limit = judged_at(self.problem, copies, shapes.most_tokens)
        usable = np.maximum(batch, 1.0)
        good = (batch >= 1) & (shapes.tpot_s(usable) <= limit)
        if self.problem.ttft_s is not None:
            good &= starts_in_time(self.problem, shapes.times, copies, usable)
        meets_demand = good.any(axis=0)
        for level in np.unique(gpus[meets_demand]):
            chosen = meets_demand & (gpus == level)
            found = self._solve(rows[chosen], tp[chosen], copies[chosen])
            if found:
                return min(found, key=lambda d: d.rank)
        return None

    def largest(self) -> Deployment | None:
        """What serves most tokens per second within the objective."""
        rows, tp = self.layouts.T
        most = np.minimum(self.problem.max_copies, self.problem.max_gpus // self.sizes[rows])
        found = self._solve(rows, tp, most, largest)
        return max(found, key=lambda d: (d.tokens_per_s, -d.gpus, -d.copies), default=None)

    def fits(self) -> bool:
        """Whether any size holds the model and one token."""
        return bool(len(self.layouts) and np.any(self.shapes(*self.layouts.T).most_tokens >= 1))

    def fastest(self) -> Deployment | None:
        """The lowest TPOT, at one token."""
        rows, tp = self.layouts.T
        found = self._solve(rows, tp, np.ones_like(rows), one_token)
        return min(found, key=lambda d: d.tpot_s, default=None)

    @cached_property
    def layouts(self) -> Ints:
        """[layouts, 2] rows of `sizes`, and devices that share attention."""
        kinds = self.problem.oracle.model.attention
        pairs = [
            (row, tp)
            for row, size in enumerate(self.sizes.tolist())
            for tp in sorted(self.style.attention_tp)
            if size % tp == 0 and all(kind.num_heads % tp == 0 for kind in kinds)
        ]
        return np.array(pairs, np.int64).reshape(-1, 2)

    def shapes(self, rows: Ints, tp: Ints) -> Shapes:
        """Shapes of the sizes in these rows, with numbers of micro-batches along the first axis."""
        problem, sizes, slots = self.problem, self.sizes[rows], self.slots[rows]
        table = problem.activation.table(self.sizes, self.slots, self.style.policy)
        every = np.array(self.style.micro_batches).reshape(-1, *np.ones(rows.ndim, np.int64))
        axis = (len(every), *rows.shape)
        return Shapes(
            problem=problem,
            kind="monolithic",
            gating="agate",
            num_attention=sizes,
            num_expert=sizes,
            attention_tp=tp,
            slots=np.broadcast_to(slots, axis),
            rows=rows,
            amax=MaxActivatedGrid(table),
            micro_batches=every,
            most_tokens=np.broadcast_to(most_of_devices(problem, sizes, slots, tp), axis),
        )

    def _copies(self) -> tuple[Ints, Ints, Ints]:
        """(rows, tp, copies): every layout with every number of copies that the GPUs allow."""
        problem, (rows, tp) = self.problem, self.layouts.T
        most = np.minimum(problem.max_copies, problem.max_gpus // self.sizes[rows])
        copies = [np.arange(1, number + 1) for number in most]
        every = np.concatenate([np.zeros(0, np.int64), *copies])
        return np.repeat(rows, most), np.repeat(tp, most), every

    def _solve(
        self, rows: Ints, tp: Ints, copies: Ints, solver: Solver = demanded
    ) -> list[Deployment]:
        if not len(rows):
            return []
        return solved(self.shapes(rows, tp), copies, self.style.policy, solver)
