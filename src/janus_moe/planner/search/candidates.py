"""Many shapes in one call of the oracle, each with the fastest of the exchange plans.

An exchange takes `fixed + tokens * each` seconds whatever the plan, so both are computed once for
every pair of pool sizes and shared by all questions about it. Knows no demand and no search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from janus_moe.planner.latency.arrays import Array, Ints
from janus_moe.planner.latency.links import share_reached
from janus_moe.planner.latency.step import StepLoad
from janus_moe.planner.search.activation import MaxActivatedGrid
from janus_moe.planner.search.prefill import MixedStep, StepTimes, step_times
from janus_moe.planner.search.problem import PoolStyle, Problem
from janus_moe.planner.search.shapes import with_prompts
from janus_moe.spec import ExchangePlanName

BLOCK = 64
"""Rows of the tables that are computed at once: their temporaries stay in the cache."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Shapes of two pools; all arrays broadcast. rows: of `amax`. fixed_s, token_s: [plans, ...]
    both directions of an exchange, without tokens and for each. most_tokens: batch that memory and
    batching allow."""

    problem: Problem
    style: PoolStyle
    amax: MaxActivatedGrid
    num_attention: Ints
    num_expert: Ints
    slots: Ints
    rows: Ints
    micro_batches: Ints
    most_tokens: Array
    fixed_s: Array
    token_s: Array

    def take(self, kept: NDArray[np.bool_]) -> Candidates:
        """Some of a flat list."""
        names = ("num_attention", "num_expert", "slots", "rows", "micro_batches", "most_tokens")
        return replace(
            self,
            **{name: getattr(self, name)[kept] for name in names},
            fixed_s=self.fixed_s[:, kept],
            token_s=self.token_s[:, kept],
        )

    def without_exchange(self, amax: MaxActivatedGrid) -> Candidates:
        """The same with exchanges that take no time, and other activated experts."""
        idle = np.zeros_like(self.fixed_s[:1])
        return replace(self, amax=amax, fixed_s=idle, token_s=idle)

    def step_s(self, batch: Array, prompts: MixedStep | None = None) -> Array:
        """A step of `batch` tokens."""
        tokens = batch / self.micro_batches
        arriving = None
        if self.style.gating == "agate":
            top_k = self.problem.oracle.model.moe.router.top_k
            arriving = np.asarray(tokens * share_reached(self.num_expert, top_k))
        load = StepLoad(
            batch=batch,
            context=self.problem.context,
            num_attention=self.num_attention,
            num_expert=self.num_expert,
            activated=self.amax.at(self.rows, tokens),
            dispatch_s=np.min(self.fixed_s + tokens * self.token_s, axis=0),
            rows=arriving,
            slots=self.slots,
            micro_batches=self.micro_batches,
        )
        return self.problem.oracle.step_s(load if prompts is None else with_prompts(load, prompts))

    def tpot_s(self, batch: Array) -> Array:
        """Time per token, prompts included where they are asked for."""
        return self.times(batch).tpot

    def times(self, batch: Array) -> StepTimes:
        return step_times(
            self.problem,
            batch,
            self.num_attention,
            self.step_s(batch),
            lambda mixed: self.step_s(mixed.rows, mixed),
        )


@dataclass(frozen=True, eq=False)
class Exchanges:
    """Times of both directions of an exchange for every pair of pool sizes, made as far as they
    are asked for. num_attention, num_expert: [n], [m], the first ascending."""

    problem: Problem
    style: PoolStyle
    num_attention: Ints
    num_expert: Ints
    _made: list[tuple[Array, Array]] = field(default_factory=list, repr=False)

    def upto(self, rows: int) -> tuple[Array, Array]:
        """(seconds without tokens, seconds per token), [plans, rows or more, m]."""
        missing = range(sum(fixed.shape[1] for fixed, _ in self._made), rows, BLOCK)
        if missing:
            self._made.extend(self._block(first) for first in missing)
            fixed, each = (np.concatenate(parts, axis=1) for parts in zip(*self._made, strict=True))
            self._made[:] = [(fixed, each)]
        return self._made[0]

    def _block(self, first: int) -> tuple[Array, Array]:
        num_attention = self.num_attention[first : first + BLOCK, None]
        plans = [self._plan(plan, num_attention) for plan in self.style.plans]
        fixed, each = (np.stack(part) for part in zip(*plans, strict=True))
        return fixed, each

    def _plan(self, plan: ExchangePlanName, num_attention: Ints) -> tuple[Array, Array]:
        few, many = (self._seconds(plan, num_attention, tokens) for tokens in (1.0, 1025.0))
        each = (many - few) / 1024
        return few - each, each

    def _seconds(self, plan: ExchangePlanName, num_attention: Ints, tokens: float) -> Array:
        oracle = self.problem.oracle
        sizes, gating = (num_attention, self.num_expert[None, :]), self.style.gating
        there, back = oracle.counts(tokens, *sizes, plan=plan, gating=gating)
        shape = np.broadcast_shapes(num_attention.shape, self.num_expert.shape)
        return np.broadcast_to(oracle.exchange_s(there) + oracle.exchange_s(back), shape)


def stacked(tables: Sequence[MaxActivatedGrid]) -> MaxActivatedGrid:
    """Tables of the same pools below each other."""
    return MaxActivatedGrid(np.concatenate([one.values for one in tables]))
