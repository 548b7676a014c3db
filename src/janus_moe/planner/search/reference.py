"""The search, one shape after another, in the words of section 5 of arXiv 2512.13525.

Obvious and slow: what `search` is tested against, and therefore with loads, slots and memory of its
own. For small spaces only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from janus_moe.planner.latency.arrays import Array
from janus_moe.planner.latency.step import StepLoad
from janus_moe.planner.search import prefill
from janus_moe.planner.search.activation import BATCH_SIZES
from janus_moe.planner.search.answers import Deployment
from janus_moe.planner.search.fixed_point import fixed_point
from janus_moe.planner.search.memory import attention_need, expert_need
from janus_moe.planner.search.prefill import MixedStep, StepTimes, with_prompts
from janus_moe.planner.search.problem import Concurrency, PoolStyle, Problem, Rate


def brute_force(problem: Problem, style: PoolStyle) -> list[Deployment]:
    """Every deployment that meets the demand within the objective, best first."""
    found = []
    for copies in range(1, min(problem.max_copies, problem.max_gpus // 2) + 1):
        for n_a in range(1, problem.max_gpus // copies):
            for n_e in range(1, problem.max_gpus // copies - n_a + 1):
                found += list(_options(problem, style, copies, n_a, n_e))
    return sorted(found, key=lambda d: (d.rank, d.num_attention, d.num_expert))


def _options(
    problem: Problem, style: PoolStyle, copies: int, n_a: int, n_e: int
) -> Iterator[Deployment]:
    experts = problem.oracle.model.moe.num_experts
    if n_e > experts:
        return
    for slots in _slots(problem, style, n_e):
        if n_e * slots < experts:
            continue
        table = problem.activation.table(np.array([n_e]), np.array([slots]), style.policy)[0]
        for micro_batches in style.micro_batches:
            for plan in style.exchange_plans:
                one = Deployment(
                    kind="pools",
                    num_attention=n_a,
                    num_expert=n_e,
                    slots=slots,
                    exchange_plan=plan,
                    gating=style.gating,
                    policy=style.policy,
                    micro_batches=micro_batches,
                    copies=copies,
                    batch=1.0,
                    activated=0.0,
                    tpot_s=0.0,
                    most_tokens=_most_tokens(problem, n_a, n_e, slots),
                    cost=copies
                    * (n_a * problem.weight_of("attention") + n_e * problem.weight_of("expert")),
                )
                solved = _solved(problem, one, table)
                if solved is None or solved.tpot_s > problem.tpot_s:
                    continue
                if problem.ttft_s is None or solved.ttft_s <= problem.ttft_s:
                    yield solved


def _solved(problem: Problem, one: Deployment, table: Array) -> Deployment | None:
    """With its batch, where it has one."""

    def activated(batch: float) -> float:
        tokens = max(1.0, batch / one.micro_batches)
        return float(np.interp(math.log2(tokens), np.log2(BATCH_SIZES), table))

    def load(rows: float) -> StepLoad:
        assert one.exchange_plan != "all-to-all"
        return problem.oracle.pools_load(
            rows,
            problem.context,
            one.num_attention,
            one.num_expert,
            activated(rows),
            plan=one.exchange_plan,
            gating=one.gating,
            micro_batches=one.micro_batches,
            slots=one.slots,
        )

    def mixed_s(step: MixedStep) -> Array:
        return problem.oracle.step_s(with_prompts(load(float(step.rows)), step))

    def times(batch: float) -> StepTimes:
        decode_s = problem.oracle.step_s(load(batch))
        return prefill.step_times(problem, batch, one.num_attention, decode_s, mixed_s)

    def tpot_s(batch: float) -> float:
        return float(times(batch).tpot)

    batch: float | None
    if isinstance(problem.demand, Rate):
        each = problem.demand.tokens_per_s / one.copies
        batch = fixed_point(tpot_s, each, one.most_tokens)
    else:
        assert isinstance(problem.demand, Concurrency)
        batch = max(1.0, problem.demand.requests / one.copies)
        if batch > one.most_tokens:
            return None
    if batch is None:
        return None
    ttft = float(times(batch).ttft)
    return replace(one, batch=batch, tpot_s=tpot_s(batch), activated=activated(batch), ttft_s=ttft)


def _slots(problem: Problem, style: PoolStyle, n_e: int) -> list[int]:
    """Counted one by one, not taken from `memory`: the search is tested against it."""
    experts = problem.oracle.model.moe.num_experts
    if style.slots is not None:
        return [min(style.slots, experts)]
    needed = math.ceil(experts / n_e)
    fit = 0
    while fit < experts and _most_expert_tokens(problem, 1, fit + 1) >= 1:
        fit += 1
    wanted = [math.ceil(experts * factor / n_e - 1e-9) for factor in style.redundancies]
    return sorted({min(max(slots, needed), max(fit, needed)) for slots in wanted})


def _most_tokens(problem: Problem, n_a: int, n_e: int, slots: int) -> float:
    room = problem.memory.usable_bytes(problem.oracle.attention_side)
    attention = attention_need(problem.oracle, n_a, problem.context).most_tokens(room)
    sequences = float(prefill.most_sequences(problem, n_a))
    return min(float(attention), sequences, _most_expert_tokens(problem, n_e, slots))


def _most_expert_tokens(problem: Problem, n_e: int, slots: int) -> float:
    room = problem.memory.usable_bytes(problem.oracle.expert_side)
    return float(expert_need(problem.oracle, n_e, slots).most_tokens(room))
