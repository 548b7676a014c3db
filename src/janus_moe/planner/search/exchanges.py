"""The fastest exchange of many pairs of pool sizes, as two numbers for each pair and plan.

An exchange takes `fixed + tokens * each` seconds whatever the plan, so both are computed once for
every pair of pool sizes and shared by all questions about it. Knows no demand and no search.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from janus_moe.planner.latency.arrays import Array, Bools, Ints
from janus_moe.planner.search.problem import PoolStyle, Problem
from janus_moe.spec import ExchangePlanName

BLOCK = 64
"""Rows of the tables that are computed at once: their temporaries stay in the cache."""


@dataclass(frozen=True, eq=False, slots=True)
class FastestExchange:
    """Seconds of both directions of an exchange, by the plan that is fastest for the tokens.

    fixed_s: [plans, ...] without tokens.
    token_s: [plans, ...] for each token.
    """

    fixed_s: Array
    token_s: Array

    def seconds(self, tokens: Array) -> Array:
        """What both directions take.

        tokens: of a micro-batch, of all attention instances.
        """
        return np.asarray(np.min(self.fixed_s + tokens * self.token_s, axis=0))

    def take(self, kept: Bools) -> FastestExchange:
        """Those of some of a flat list."""
        return FastestExchange(self.fixed_s[:, kept], self.token_s[:, kept])


def no_exchange(length: int) -> FastestExchange:
    """Exchanges that take no time, for a flat list."""
    return FastestExchange(np.zeros((1, length)), np.zeros((1, length)))


@dataclass(frozen=True, eq=False)
class ExchangeTable:
    """Times of exchanges for every pair of pool sizes, made as far as they are asked for.

    num_attention: [n] ascending.
    num_expert: [m]
    """

    problem: Problem
    style: PoolStyle
    num_attention: Ints
    num_expert: Ints
    _made: list[tuple[Array, Array]] = field(default_factory=list, repr=False)

    def at(self, row: Ints, column: Ints) -> FastestExchange:
        """Of the pairs at these positions; both broadcast."""
        fixed, each = self._upto(int(np.max(row, initial=-1)) + 1)
        return FastestExchange(fixed[:, row, column], each[:, row, column])

    def _upto(self, rows: int) -> tuple[Array, Array]:
        """(seconds without tokens, seconds per token), [plans, rows or more, m]."""
        missing = range(sum(fixed.shape[1] for fixed, _ in self._made), rows, BLOCK)
        if missing:
            self._made.extend(self._block(first) for first in missing)
            fixed, each = (np.concatenate(parts, axis=1) for parts in zip(*self._made, strict=True))
            self._made[:] = [(fixed, each)]
        return self._made[0]

    def _block(self, first: int) -> tuple[Array, Array]:
        num_attention = self.num_attention[first : first + BLOCK, None]
        plans = [self._plan(plan, num_attention) for plan in self.style.exchange_plans]
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
