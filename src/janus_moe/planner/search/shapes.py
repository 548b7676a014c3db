"""Deployments as arrays: what a search evaluates, and the time and memory of every one.

`PoolShapes` and `MonolithicShapes` hold one array per property; all arrays broadcast, so a grid of
attention instances against expert instances stays two vectors until something needs both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from janus_moe.planner.latency.arrays import Array, Ints, Numbers
from janus_moe.planner.latency.step import StepLoad
from janus_moe.planner.search.activation import MaxActivatedGrid
from janus_moe.planner.search.memory import attention_need, even_slots, expert_need, monolithic_need
from janus_moe.planner.search.prefill import MixedStep, StepTimes, most_sequences, step_times
from janus_moe.planner.search.problem import MonolithicStyle, PoolStyle, Problem
from janus_moe.spec import ExchangePlanName


@dataclass(frozen=True, eq=False)
class PoolShapes:
    """Shapes of two pools with one exchange plan and number of micro-batches.

    num_attention, num_expert, slots, rows: broadcast; rows: of `amax`, for each expert pool.
    """

    problem: Problem
    style: PoolStyle
    num_attention: Ints
    num_expert: Ints
    slots: Ints
    rows: Ints
    amax: MaxActivatedGrid
    plan: ExchangePlanName
    micro_batches: int

    @cached_property
    def most_tokens(self) -> Array:
        """Batch that memory allows, below 1 where the weights do not fit."""
        return np.minimum(self.most_of_attention, self.most_of_experts)

    @cached_property
    def most_of_attention(self) -> Array:
        """Batch that memory and batching of the attention pool allow."""
        problem, oracle = self.problem, self.problem.oracle
        need = attention_need(oracle, self.num_attention, problem.context)
        most = need.most_tokens(problem.memory.usable_bytes(oracle.attention_side))
        return np.minimum(most, most_sequences(problem, self.num_attention))

    @cached_property
    def most_of_experts(self) -> Array:
        """Batch that the memory of the expert pool allows."""
        problem, oracle = self.problem, self.problem.oracle
        need = expert_need(oracle, self.num_expert, self.slots)
        return need.most_tokens(problem.memory.usable_bytes(oracle.expert_side))

    def activated(self, batch: Array) -> Array:
        """a_max of one micro-batch."""
        return self.amax.at(self.rows, batch / self.micro_batches)

    def tpot_s(self, batch: Array) -> Array:
        """batch: sequences that decode on all attention instances."""
        return self.times(batch).tpot

    def times(self, batch: Array) -> StepTimes:
        decode_s = self.problem.oracle.step_s(self.load(batch, self.activated(batch)))
        return step_times(self.problem, batch, self.num_attention, decode_s, self._mixed_s)

    def _mixed_s(self, step: MixedStep) -> Array:
        load = self.load(step.rows, self.activated(step.rows))
        return self.problem.oracle.step_s(with_prompts(load, step))

    def load(self, batch: Numbers, activated: Numbers) -> StepLoad:
        """What the oracle is asked about."""
        load = self.problem.oracle.pools_load(
            batch,
            self.problem.context,
            self.num_attention,
            self.num_expert,
            activated,
            plan=self.plan,
            gating=self.style.gating,
            micro_batches=self.micro_batches,
        )
        return replace(load, slots=self.slots)


@dataclass(frozen=True, eq=False)
class MonolithicShapes:
    """Expert parallelism of `num_devices` devices, of which `tp` each share the heads of an
    attention instance. rows: of `amax`."""

    problem: Problem
    style: MonolithicStyle
    num_devices: Ints
    tp: Ints
    slots: Ints
    rows: Ints
    amax: MaxActivatedGrid
    micro_batches: int

    @cached_property
    def most_tokens(self) -> Array:
        problem, oracle = self.problem, self.problem.oracle
        need = monolithic_need(oracle, self.num_devices, self.slots, problem.context, self.tp)
        most = need.most_tokens(problem.memory.usable_bytes(oracle.attention_side))
        return np.minimum(most, most_sequences(problem, self.num_attention))

    @property
    def num_attention(self) -> Ints:
        """Attention instances of a copy."""
        return self.num_devices // self.tp

    def activated(self, batch: Array) -> Array:
        return self.amax.at(self.rows, batch / self.micro_batches)

    def tpot_s(self, batch: Array) -> Array:
        """batch: sequences that decode on all devices."""
        return self.times(batch).tpot

    def times(self, batch: Array) -> StepTimes:
        decode_s, problem = self.problem.oracle.step_s(self._load(batch)), self.problem
        return step_times(problem, batch, self.num_attention, decode_s, self._mixed_s, self.tp)

    def _mixed_s(self, step: MixedStep) -> Array:
        return self.problem.oracle.step_s(with_prompts(self._load(step.rows), step))

    def _load(self, batch: Array) -> StepLoad:
        load = self.problem.oracle.monolithic_load(
            batch,
            self.problem.context,
            self.num_devices,
            self.activated(batch),
            micro_batches=self.micro_batches,
            attention_tp=self.tp,
        )
        return replace(load, slots=self.slots)


def with_prompts(load: StepLoad, step: MixedStep) -> StepLoad:
    """The same rows for the experts, with chunks of prompts among them."""
    return replace(load, attention_tokens=step.tokens, context=step.context, logits=step.logits)


def slot_options(problem: Problem, style: PoolStyle, num_expert: Ints, fit: int) -> list[Ints]:
    """[pools] slots per instance, one array for each option; `fit` is what memory allows."""
    experts = problem.oracle.model.moe.num_experts
    if style.slots is not None:
        return [np.full_like(num_expert, min(style.slots, experts))]
    return [even_slots(experts, num_expert, one, fit) for one in style.redundancies]
