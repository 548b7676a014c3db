"""All options for the same shapes in one call of the oracle: what `PoolShapes` says one by one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from janus_moe.planner.latency.arrays import Array, Ints
from janus_moe.planner.latency.links import share_reached
from janus_moe.planner.latency.step import StepLoad
from janus_moe.planner.search.activation import MaxActivatedGrid
from janus_moe.planner.search.candidates import stacked
from janus_moe.planner.search.prefill import MixedStep, StepTimes, step_times
from janus_moe.planner.search.shapes import PoolShapes, with_prompts
from janus_moe.spec import ExchangePlanName


@dataclass(frozen=True, eq=False)
class Stack:
    """[options, shapes]. options: of the same flat list of shapes, in the same style."""

    options: tuple[PoolShapes, ...]

    @property
    def num_attention(self) -> Ints:
        """[shapes]"""
        return self.options[0].num_attention

    @property
    def num_expert(self) -> Ints:
        """[shapes]"""
        return self.options[0].num_expert

    @cached_property
    def micro_batches(self) -> Ints:
        """[options, 1]"""
        return np.array([[one.micro_batches] for one in self.options], np.int64)

    @cached_property
    def slots(self) -> Ints:
        return np.stack([one.slots for one in self.options])

    @cached_property
    def most_tokens(self) -> Array:
        """Batch that memory allows, below 1 where the weights do not fit."""
        return np.stack([one.most_tokens for one in self.options])

    def activated(self, batch: Array) -> Array:
        """a_max of one micro-batch."""
        amax, rows = self._amax
        return amax.at(rows, batch / self.micro_batches)

    def tpot_s(self, batch: Array) -> Array:
        """batch: [options, shapes] sequences that decode on all attention instances."""
        return self.times(batch).tpot

    def times(self, batch: Array) -> StepTimes:
        first = self.options[0]
        return step_times(
            first.problem,
            batch,
            self.num_attention,
            first.problem.oracle.step_s(self._load(batch)),
            self._mixed_s,
        )

    def _mixed_s(self, step: MixedStep) -> Array:
        load = with_prompts(self._load(step.rows), step)
        return self.options[0].problem.oracle.step_s(load)

    def _load(self, batch: Array) -> StepLoad:
        first, tokens = self.options[0], batch / self.micro_batches
        oracle, gating = first.problem.oracle, first.style.gating
        reached = share_reached(self.num_expert, oracle.model.moe.router.top_k)
        load = StepLoad(
            batch=batch,
            context=first.problem.context,
            num_attention=self.num_attention,
            num_expert=self.num_expert,
            activated=self.activated(batch),
            rows=None if gating == "egate" else np.asarray(tokens * reached),
            slots=self.slots,
            micro_batches=self.micro_batches,
        )
        there, back = np.empty_like(tokens), np.empty_like(tokens)
        for plan, which in self._of_plan.items():
            counts = oracle.counts(
                tokens[which], self.num_attention, self.num_expert, plan=plan, gating=gating
            )
            there[which], back[which] = (oracle.exchange_s(one) for one in counts)
        return replace(load, dispatch_s=there, combine_s=back)

    @cached_property
    def _of_plan(self) -> dict[ExchangePlanName, Ints]:
        """Options with each plan."""
        plans = [one.plan for one in self.options]
        return {
            plan: np.array([i for i, other in enumerate(plans) if other == plan])
            for plan in dict.fromkeys(plans)
        }

    @cached_property
    def _amax(self) -> tuple[MaxActivatedGrid, Ints]:
        """(all tables below each other, [options, shapes] rows in it)."""
        tables = list({id(one.amax): one.amax for one in self.options}.values())
        begins = np.cumsum([0, *(len(one.values) for one in tables)])
        begin_of = {id(one): int(begin) for one, begin in zip(tables, begins, strict=False)}
        rows = np.stack([one.rows + begin_of[id(one.amax)] for one in self.options])
        return stacked(tables), rows
