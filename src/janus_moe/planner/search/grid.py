"""All pairs of pool sizes with all options, as lists that the oracle is asked about at once.

Knows no demand; `feasible` and `coarse` search it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from janus_moe.planner.latency.arrays import Array, Ints
from janus_moe.planner.search.activation import MaxActivatedGrid
from janus_moe.planner.search.exchanges import BLOCK, ExchangeTable
from janus_moe.planner.search.problem import PoolStyle, Problem
from janus_moe.planner.search.shapes import Shapes, most_of_attention, most_of_experts

AT_ONCE = 16_384
"""Shapes in one call of the oracle: its temporaries stay in the cache."""


@dataclass(frozen=True, eq=False)
class ShapeGrid:
    """Attention instances [n, 1] against expert instances [1, m].

    slots: [slot options, m] per expert instance.
    amax: their tables below each other.

    An option is a number: slot option * numbers of micro-batches + place in these.
    """

    problem: Problem
    style: PoolStyle
    num_attention: Ints
    num_expert: Ints
    slots: Ints
    amax: MaxActivatedGrid

    @property
    def num_options(self) -> int:
        return len(self.slots) * len(self.style.micro_batches)

    @cached_property
    def gpus(self) -> Ints:
        """[n, m] of one copy."""
        both: Ints = self.num_attention + self.num_expert
        return both

    @property
    def least(self) -> int:
        """GPUs of the smallest shape."""
        return int(self.num_attention[0, 0] + self.num_expert[0, 0])

    def cost(self, row: Ints, column: Ints) -> Array:
        """Of one copy of the pairs at these positions."""
        problem = self.problem
        return np.asarray(
            self.num_attention[row, 0] * problem.weight_of("attention")
            + self.num_expert[0, column] * problem.weight_of("expert")
        )

    def at(self, option: Ints, row: Ints, column: Ints) -> Shapes:
        """The shapes with these options at these positions, with the fastest exchange plan of each;
        all broadcast."""
        slots = option // len(self.style.micro_batches)
        return Shapes(
            problem=self.problem,
            gating=self.style.gating,
            num_attention=self.num_attention[row, 0],
            num_expert=self.num_expert[0, column],
            slots=self.slots[slots, column],
            rows=slots * self.num_expert.shape[1] + column,
            amax=self.amax,
            micro_batches=self.micro_batches[option % len(self.style.micro_batches)],
            most_tokens=np.minimum(
                self.most_of_attention[row], self.most_of_experts[slots, column]
            ),
            exchange_plans=self.style.exchange_plans,
            fastest=self._exchanges.at(row, column),
        )

    def fastest_s(self) -> Array:
        """[n, m] the shortest step of each pair, at one token; infinite where memory is short."""
        least = np.full(self.gpus.shape, np.inf)
        column = np.arange(self.num_expert.shape[1])[None, :]
        for first in range(0, len(least), BLOCK):
            block = np.arange(first, min(first + BLOCK, len(least)))
            for option in range(self.num_options):
                one = self.at(np.array(option), block[:, None], column)
                seconds = np.where(one.most_tokens >= 1, one.step_s(np.ones((1, 1))), np.inf)
                least[block] = np.minimum(least[block], seconds)
        return least

    @cached_property
    def micro_batches(self) -> Ints:
        """Numbers that are tried."""
        return np.array(self.style.micro_batches, np.int64)

    @cached_property
    def most_of_attention(self) -> Array:
        """[n] batch that memory and batching of the attention pool allow."""
        return most_of_attention(self.problem, self.num_attention[:, 0])

    @cached_property
    def most_of_experts(self) -> Array:
        """[slot options, m] batch that the memory of the expert pool allows."""
        return most_of_experts(self.problem, self.num_expert, self.slots)

    @cached_property
    def _exchanges(self) -> ExchangeTable:
        sizes = self.num_attention[:, 0], self.num_expert[0]
        return ExchangeTable(self.problem, self.style, *sizes)


def parts(length: int) -> Iterator[slice]:
    """Of a list of shapes, each for one call of the oracle."""
    return (slice(first, first + AT_ONCE) for first in range(0, length, AT_ONCE))
