"""Deployments as arrays: what each has to do in a step, how long that takes, what memory allows.

All arrays broadcast, so a grid of attention instances against expert instances stays two vectors
until something needs both. This is the only place of the search that makes a load for the oracle.
It knows no demand: batches are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from janus_moe.planner.latency.arrays import Array, Bools, Ints, Numbers
from janus_moe.planner.latency.links import Gating
from janus_moe.planner.latency.step import DeploymentKind, StepLoad
from janus_moe.planner.search.activation import BATCH_SIZES, MaxActivatedGrid
from janus_moe.planner.search.answers import Deployment
from janus_moe.planner.search.exchanges import FastestExchange
from janus_moe.planner.search.memory import attention_need, expert_need, monolithic_need
from janus_moe.planner.search.prefill import (
    MixedStep,
    StepTimes,
    most_sequences,
    step_times,
    with_prompts,
)
from janus_moe.planner.search.problem import Problem
from janus_moe.spec import ExchangePlanName


@dataclass(frozen=True, eq=False, kw_only=True)
class Shapes:
    """Deployments of one kind; all arrays broadcast, with options, if any, along the first axis.

    num_attention: attention instances of a copy; devices of a monolithic one.
    num_expert: expert instances of a copy; devices of a monolithic one.
    attention_tp: devices of a monolithic copy that share the heads of an attention instance.
    slots: experts per instance and layer.
    rows: of `amax`.
    amax: activated experts of the busiest instance.
    most_tokens: batch that memory and batching allow, below 1 where the weights do not fit.
    exchange_plans: that of all pools, or one for each option; empty for monolithic ones.
    fastest: times of the fastest of these plans; None means that each plan is that of an option.
    """

    problem: Problem
    kind: DeploymentKind = "pools"
    gating: Gating
    num_attention: Ints
    num_expert: Ints
    attention_tp: Ints | int = 1
    slots: Ints
    rows: Ints
    amax: MaxActivatedGrid
    micro_batches: Ints
    most_tokens: Array
    exchange_plans: tuple[ExchangePlanName, ...] = ()
    fastest: FastestExchange | None = None

    @classmethod
    def of(cls, problem: Problem, one: Deployment) -> Shapes:
        """One deployment, whose activated experts are the same for any batch."""
        return cls(
            problem=problem,
            kind=one.kind,
            gating=one.gating,
            num_attention=np.array(one.num_attention),
            num_expert=np.array(one.num_expert),
            attention_tp=one.attention_tp,
            slots=np.array(one.slots),
            rows=np.array(0),
            amax=MaxActivatedGrid(np.full((1, len(BATCH_SIZES)), one.activated)),
            micro_batches=np.array(one.micro_batches),
            most_tokens=np.array(one.most_tokens),
            exchange_plans=() if one.exchange_plan == "all-to-all" else (one.exchange_plan,),
        )

    def take(self, kept: Bools) -> Shapes:
        """Some of a flat list of pools with the fastest exchanges."""
        names = ("num_attention", "num_expert", "slots", "rows", "micro_batches", "most_tokens")
        assert self.fastest is not None
        some = {name: getattr(self, name)[kept] for name in names}
        return replace(self, **some, fastest=self.fastest.take(kept))

    def activated(self, batch: Numbers) -> Array:
        """a_max of one micro-batch."""
        return self.amax.at(self.rows, np.asarray(batch / self.micro_batches))

    def tpot_s(self, batch: Array) -> Array:
        """Time per token, prompts included where they are asked for.

        batch: sequences that decode on all attention instances.
        """
        return self.times(batch).tpot

    def times(self, batch: Numbers) -> StepTimes:
        """Times of steps with so many sequences that decode on all attention instances."""
        return step_times(
            self.problem,
            batch,
            self.num_attention // self.attention_tp,
            self.step_s(batch),
            lambda mixed: self.step_s(mixed.rows, mixed),
            self.attention_tp,
        )

    def step_s(self, batch: Numbers, prompts: MixedStep | None = None) -> Array:
        """A step of `batch` tokens, with chunks of prompts among them if there are any."""
        load = self.load(batch)
        return self.problem.oracle.step_s(load if prompts is None else with_prompts(load, prompts))

    def load(self, batch: Numbers) -> StepLoad:
        """What a step of `batch` tokens has to do."""
        oracle, context = self.problem.oracle, self.problem.context
        if self.kind == "monolithic":
            return oracle.monolithic_load(
                batch,
                context,
                self.num_expert,
                self.activated(batch),
                micro_batches=self.micro_batches,
                attention_tp=self.attention_tp,
                slots=self.slots,
            )
        return oracle.pools_load(
            batch,
            context,
            self.num_attention,
            self.num_expert,
            self.activated(batch),
            plan=self.exchange_plans[0],
            gating=self.gating,
            micro_batches=self.micro_batches,
            slots=self.slots,
            exchange_s=self._exchange_s(batch),
        )

    def _exchange_s(self, batch: Numbers) -> tuple[Array, Array] | None:
        """(dispatch, combine) of a micro-batch; None: as one plan has it for all."""
        tokens, oracle = np.asarray(batch / self.micro_batches), self.problem.oracle
        if self.fastest is not None:
            return self.fastest.seconds(tokens), np.zeros(())
        if len(self._options_of) == 1:
            return None
        sizes = self.num_attention, self.num_expert
        shape = np.broadcast(tokens, *sizes).shape
        there, back, each = np.empty(shape), np.empty(shape), np.broadcast_to(tokens, shape)
        for plan, which in self._options_of.items():
            counts = oracle.counts(each[which], *sizes, plan=plan, gating=self.gating)
            there[which], back[which] = (oracle.exchange_s(one) for one in counts)
        return there, back

    @cached_property
    def _options_of(self) -> dict[ExchangePlanName, Ints]:
        """Exchange plan -> options that have it."""
        plans = np.array(self.exchange_plans)
        return {plan: np.flatnonzero(plans == plan) for plan in dict.fromkeys(self.exchange_plans)}


def most_of_attention(problem: Problem, num_attention: Ints) -> Array:
    """Batch that memory and batching of the attention pool allow."""
    need = attention_need(problem.oracle, num_attention, problem.context)
    most = need.most_tokens(problem.memory.usable_bytes(problem.oracle.attention_side))
    return np.minimum(most, most_sequences(problem, num_attention))


def most_of_experts(problem: Problem, num_expert: Ints, slots: Ints) -> Array:
    """Batch that the memory of the expert pool allows."""
    need = expert_need(problem.oracle, num_expert, slots)
    return need.most_tokens(problem.memory.usable_bytes(problem.oracle.expert_side))


def most_of_devices(problem: Problem, num_devices: Ints, slots: Ints, tp: Ints) -> Array:
    """Batch that memory and batching of a monolithic copy allow."""
    need = monolithic_need(problem.oracle, num_devices, slots, problem.context, tp)
    most = need.most_tokens(problem.memory.usable_bytes(problem.oracle.attention_side))
    return np.minimum(most, most_sequences(problem, num_devices // tp))
