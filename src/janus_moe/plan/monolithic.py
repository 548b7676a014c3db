"""Expert parallelism without pools, as a candidate beside the pools and as a baseline.

Every device of a copy holds all of attention (data parallel) and a share of the experts, as SGLang
with data-parallel attention and expert parallelism does. Attention sharded by tensor parallelism
is not modelled: it would save memory for models whose attention is large.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from janus_moe.perf.arrays import Array
from janus_moe.plan.activation import AmaxGrid
from janus_moe.plan.answers import Deployment
from janus_moe.plan.fixed_point import fixed_points, largest_batches
from janus_moe.plan.problem import Concurrency, MonolithicStyle, Problem, Rate, Saturate
from janus_moe.plan.shapes import Ints, Monoliths


@dataclass(frozen=True, eq=False)
class MonolithSearch:
    """All sizes and copies of one style for one question. Attention and experts are on the
    oracle's attention device; its expert device must be the same for times to make sense."""

    problem: Problem
    style: MonolithicStyle

    @cached_property
    def sizes(self) -> Ints:
        """Devices of a copy that the GPUs and the experts allow."""
        most = min(self.problem.max_gpus, self.problem.oracle.model.num_experts)
        return np.array([size for size in sorted(self.style.sizes) if size <= most], np.int64)

    @cached_property
    def slots(self) -> Ints:
        """[sizes] experts per device and layer."""
        experts = self.problem.oracle.model.num_experts
        wanted = np.ceil(experts * self.style.redundancy / np.maximum(self.sizes, 1) - 1e-9)
        return np.minimum(wanted.astype(np.int64), experts)

    def cheapest(self) -> Deployment | None:
        """The cheapest that keeps up with the demand within the objective."""
        return min(self._solve(), key=lambda d: d.rank, default=None)

    def largest(self) -> Deployment | None:
        """What serves most tokens per second within the objective."""
        found = self._solve()
        return max(found, key=lambda d: (d.tokens_per_s, -d.gpus, -d.copies), default=None)

    def fits(self) -> bool:
        """Whether any size holds the model and one token."""
        return any(np.any(one.most_tokens >= 1) for one in self.candidates(self._ones()))

    def fastest(self) -> Deployment | None:
        """The lowest TPOT, at one token."""
        return min(self._solve(alone=True), key=lambda d: d.tpot_s, default=None)

    def _ones(self) -> Ints:
        return np.arange(self.sizes.size, dtype=np.int64)

    def candidates(self, rows: Ints) -> list[Monoliths]:
        """Shapes of the sizes in these rows, one for each number of micro-batches."""
        if not self.sizes.size:
            return []
        table = self.problem.activation.table(self.sizes, self.slots, self.style.policy)
        return [
            Monoliths(
                self.problem,
                self.style,
                self.sizes[rows],
                self.slots[rows],
                rows,
                AmaxGrid(table),
                micro_batches,
            )
            for micro_batches in self.style.micro_batches
        ]

    def _solve(self, *, alone: bool = False) -> list[Deployment]:
        """alone: one token instead of the demand, whatever the objective."""
        problem = self.problem
        pairs = [
            (row, copies)
            for row, size in enumerate(self.sizes.tolist())
            for copies in range(1, min(problem.max_copies, problem.max_gpus // size) + 1)
        ]
        if not pairs:
            return []
        rows, copies = np.array(pairs, np.int64).T
        found: list[Deployment] = []
        for shapes in self.candidates(rows):
            if alone:
                batch = np.where(shapes.most_tokens >= 1, 1.0, np.nan)
            else:
                batch = self._batches(shapes, copies)
            usable = np.where(np.isnan(batch), 1.0, batch)
            tpot = shapes.tpot_s(usable)
            good = ~np.isnan(batch)
            if not alone:
                good &= tpot <= problem.tpot_s
            activated, most = shapes.activated(usable), shapes.most_tokens
            found += [
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
                    batch=float(usable[index]),
                    activated=float(activated[index]),
                    tpot_s=float(tpot[index]),
                    most_tokens=float(most[index]),
                    cost=float(
                        copies[index] * shapes.num_devices[index] * problem.weight_of("attention")
                    ),
                )
                for index in np.flatnonzero(good)
            ]
        return found

    def _batches(self, shapes: Monoliths, copies: Ints) -> Array:
        demand, most = self.problem.demand, shapes.most_tokens
        if isinstance(demand, Saturate):
            return largest_batches(shapes.tpot_s, self.problem.tpot_s, most)
        if isinstance(demand, Rate):
            each = demand.tokens_per_s / copies
            limit = np.minimum(most, np.maximum(1.0, each * self.problem.tpot_s))
            return fixed_points(shapes.tpot_s, each, limit)
        assert isinstance(demand, Concurrency)
        wanted = np.maximum(1.0, demand.requests / copies)
        return np.where(most >= wanted, wanted, np.nan)
