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
from janus_moe.planner.search.candidates import BLOCK, Candidates, Exchanges
from janus_moe.planner.search.memory import attention_need, expert_need
from janus_moe.planner.search.prefill import most_sequences
from janus_moe.planner.search.problem import PoolStyle, Problem

AT_ONCE = 16_384
"""Candidates in one call of the oracle: its temporaries stay in the cache."""


@dataclass(frozen=True, eq=False)
class ShapeGrid:
    """Attention instances [n, 1] against expert instances [1, m].

    slots: [slot options, m] per expert instance. amax: their tables below each other. An option is
    a number: slot option * numbers of micro-batches + place in these.
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

    def at(self, option: Ints, row: Ints, column: Ints) -> Candidates:
        """The shapes with these options at these positions; all broadcast."""
        fixed, each = self._exchanges.upto(int(np.max(row, initial=-1)) + 1)
        slots = option // len(self.style.micro_batches)
        return Candidates(
            problem=self.problem,
            style=self.style,
            amax=self.amax,
            num_attention=self.num_attention[row, 0],
            num_expert=self.num_expert[0, column],
            slots=self.slots[slots, column],
            rows=slots * self.num_expert.shape[1] + column,
            micro_batches=self.micro_batches[option % len(self.style.micro_batches)],
            most_tokens=np.minimum(
                self.most_of_attention[row], self.most_of_experts[slots, column]
            ),
            fixed_s=fixed[:, row, column],
            token_s=each[:, row, column],
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
        problem, num_attention = self.problem, self.num_attention[:, 0]
        oracle = problem.oracle
        need = attention_need(oracle, num_attention, problem.context)
        most = need.most_tokens(problem.memory.usable_bytes(oracle.attention_side))
        return np.minimum(most, most_sequences(problem, num_attention))

    @cached_property
    def most_of_experts(self) -> Array:
        """[slot options, m] batch that the memory of the expert pool allows."""
        problem, oracle = self.problem, self.problem.oracle
        need = expert_need(oracle, self.num_expert, self.slots)
        return need.most_tokens(problem.memory.usable_bytes(oracle.expert_side))

    @cached_property
    def _exchanges(self) -> Exchanges:
        return Exchanges(self.problem, self.style, self.num_attention[:, 0], self.num_expert[0])


def parts(length: int) -> Iterator[slice]:
    """Of a list of candidates, each for one call of the oracle."""
    return (slice(first, first + AT_ONCE) for first in range(0, length, AT_ONCE))
