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

from janus_moe.planner.latency.arrays import Array, Ints
from janus_moe.planner.search.activation import MaxActivatedGrid
from janus_moe.planner.search.answers import Deployment
from janus_moe.planner.search.feasible import judged_at, starts_in_time
from janus_moe.planner.search.fixed_point import fixed_points, largest_batches
from janus_moe.planner.search.memory import even_slots
from janus_moe.planner.search.prefill import StepTimes
from janus_moe.planner.search.problem import Concurrency, MonolithicStyle, Problem, Rate, Saturate
from janus_moe.planner.search.shapes import MonolithicShapes


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
        """The cheapest that keeps up with the demand within the objective."""
        rows, tp, copies = self._copies()
        gpus = copies * self.sizes[rows]
        meets_demand = np.zeros(len(rows), np.bool_)
        for shapes in self.candidates(rows, tp):
            batch, limit = judged_at(self.problem, copies, shapes.most_tokens)
            good = (batch >= 1) & (shapes.tpot_s(np.maximum(batch, 1.0)) <= limit)
            if self.problem.ttft_s is not None:
                usable = np.maximum(batch, 1.0)
                good &= starts_in_time(self.problem, shapes.times, copies, usable)
            meets_demand |= good
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
        found = self._solve(rows, tp, most)
        return max(found, key=lambda d: (d.tokens_per_s, -d.gpus, -d.copies), default=None)

    def fits(self) -> bool:
        """Whether any size holds the model and one token."""
        return any(np.any(one.most_tokens >= 1) for one in self.candidates(*self.layouts.T))

    def fastest(self) -> Deployment | None:
        """The lowest TPOT, at one token."""
        rows, tp = self.layouts.T
        found = self._solve(rows, tp, np.ones_like(rows), alone=True)
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

    def candidates(self, rows: Ints, tp: Ints) -> list[MonolithicShapes]:
        """Shapes of the sizes in these rows, one for each number of micro-batches."""
        if not self.sizes.size:
            return []
        table = self.problem.activation.table(self.sizes, self.slots, self.style.policy)
        return [
            MonolithicShapes(
                self.problem,
                self.style,
                self.sizes[rows],
                tp,
                self.slots[rows],
                rows,
                MaxActivatedGrid(table),
                micro_batches,
            )
            for micro_batches in self.style.micro_batches
        ]

    def _copies(self) -> tuple[Ints, Ints, Ints]:
        """(rows, tp, copies): every layout with every number of copies that the GPUs allow."""
        problem, (rows, tp) = self.problem, self.layouts.T
        most = np.minimum(problem.max_copies, problem.max_gpus // self.sizes[rows])
        copies = [np.arange(1, number + 1) for number in most]
        every = np.concatenate([np.zeros(0, np.int64), *copies])
        return np.repeat(rows, most), np.repeat(tp, most), every

    def _solve(
        self, rows: Ints, tp: Ints, copies: Ints, *, alone: bool = False
    ) -> list[Deployment]:
        """alone: one token instead of the demand, whatever the objective."""
        problem = self.problem
        found: list[Deployment] = []
        for shapes in self.candidates(rows, tp):
            if alone:
                batch = np.where(shapes.most_tokens >= 1, 1.0, np.nan)
            else:
                batch = self._batches(shapes, copies)
            usable = np.where(np.isnan(batch), 1.0, batch)
            times = shapes.times(usable)
            good = ~np.isnan(batch)
            if not alone:
                good &= times.scaled_latency(problem) <= problem.tpot_s
            found += self._deployments(shapes, np.flatnonzero(good), copies, usable, times)
        return found

    def _deployments(
        self, shapes: MonolithicShapes, chosen: Ints, copies: Ints, batch: Array, times: StepTimes
    ) -> list[Deployment]:
        activated, most = shapes.activated(batch), shapes.most_tokens
        price = self.problem.weight_of("attention")
        return [
            Deployment(
                kind="monolithic",
                num_attention=int(shapes.num_devices[index]),
                num_expert=int(shapes.num_devices[index]),
                slots=int(shapes.slots[index]),
                plan="all-to-all",
                gating="agate",
                policy=self.style.policy,
                micro_batches=shapes.micro_batches,
                copies=int(copies[index]),
                batch=float(batch[index]),
                activated=float(activated[index]),
                tpot_s=float(times.tpot[index]),
                most_tokens=float(most[index]),
                cost=float(copies[index] * shapes.num_devices[index] * price),
                attention_tp=int(shapes.tp[index]),
                ttft_s=float(times.ttft[index]),
            )
            for index in chosen
        ]

    def _batches(self, shapes: MonolithicShapes, copies: Ints) -> Array:
        demand, most = self.problem.demand, shapes.most_tokens
        if isinstance(demand, Saturate):
            return largest_batches(
                lambda batch: shapes.times(batch).scaled_latency(self.problem),
                self.problem.tpot_s,
                most,
            )
        if isinstance(demand, Rate):
            each = demand.tokens_per_s / copies
            limit = np.minimum(most, np.maximum(1.0, each * self.problem.tpot_s))
            return fixed_points(shapes.tpot_s, each, limit)
        assert isinstance(demand, Concurrency)
        wanted = np.maximum(1.0, demand.requests / copies)
        return np.where(most >= wanted, wanted, np.nan)
