"""Where each microsecond and each gigabyte of a deployment goes, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from janus_moe.planner.latency.arrays import Array
from janus_moe.planner.latency.coefficients import roofline_law
from janus_moe.planner.latency.estimate import Estimate
from janus_moe.planner.latency.precision import arithmetic
from janus_moe.planner.latency.step import StepEstimate, StepLoad
from janus_moe.planner.search.answers import Deployment
from janus_moe.planner.search.memory import MemoryNeed, attention_need, expert_need, monolithic_need
from janus_moe.planner.search.prefill import MixedStep, step_times
from janus_moe.planner.search.problem import Problem
from janus_moe.planner.search.shapes import with_prompts


def step_estimate(problem: Problem, one: Deployment) -> StepEstimate:
    """A step of one copy at its batch, part by part, a mean over those with and without prompts:
    what prompts add to decoding is a part of its own."""
    step = decode_estimate(problem, one)
    prompts = one.tpot_s - step.tpot.seconds
    if problem.prefill == "excluded" or prompts <= 1e-9 * one.tpot_s:
        return step
    return replace(
        step,
        tpot=Estimate(one.tpot_s, "roofline"),
        whole={**step.whole, "prompts of others": Estimate(prompts, "roofline")},
    )


def decode_estimate(problem: Problem, one: Deployment) -> StepEstimate:
    """A step in which all sequences decode."""
    return problem.oracle.step(_load(problem, one, one.batch))


def prompt_step_s(problem: Problem, one: Deployment) -> float:
    """A step in which prompts are computed, at the deployment's batch and a_max."""
    oracle = problem.oracle

    def mixed_s(step: MixedStep) -> Array:
        return oracle.step_s(with_prompts(_load(problem, one, float(step.rows)), step))

    decode_s = oracle.step_s(_load(problem, one, one.batch))
    instances, tp = one.num_attention // one.attention_tp, one.attention_tp
    return float(step_times(problem, one.batch, instances, decode_s, mixed_s, tp).mixed)


def _load(problem: Problem, one: Deployment, rows: float) -> StepLoad:
    oracle = problem.oracle
    if one.kind == "monolithic":
        load = oracle.monolithic_load(
            rows,
            problem.context,
            one.num_attention,
            one.activated,
            micro_batches=one.micro_batches,
            attention_tp=one.attention_tp,
        )
    else:
        assert one.plan != "all-to-all"
        load = oracle.pools_load(
            rows,
            problem.context,
            one.num_attention,
            one.num_expert,
            one.activated,
            plan=one.plan,
            gating=one.gating,
            micro_batches=one.micro_batches,
        )
    return replace(load, slots=one.slots)


def memory_parts(problem: Problem, one: Deployment) -> Mapping[str, tuple[int, dict[str, float]]]:
    """Pool -> (its instances in a copy, bytes on each by purpose, with what is free and what the
    rules leave to the runtime)."""
    oracle, usable = problem.oracle, problem.memory.usable
    memory = {
        "attention": oracle.attention_side.device.memory_bytes,
        "expert": oracle.expert_side.device.memory_bytes,
        "device": oracle.attention_side.device.memory_bytes,
    }
    needs: dict[str, tuple[int, MemoryNeed]]
    if one.kind == "monolithic":
        need = monolithic_need(
            oracle, one.num_attention, one.slots, problem.context, one.attention_tp
        )
        needs = {"device": (one.num_attention, need)}
    else:
        needs = {
            "attention": (
                one.num_attention,
                attention_need(oracle, one.num_attention, problem.context),
            ),
            "expert": (one.num_expert, expert_need(oracle, one.num_expert, one.slots)),
        }
    found = {}
    for name, (instances, need) in needs.items():
        parts = need.parts(one.batch)
        free = usable * memory[name] - sum(parts.values())
        parts["free"] = free
        parts["left to the runtime"] = (1 - usable) * memory[name]
        found[name] = (instances, parts)
    return found


def prefill_s(problem: Problem, one: Deployment) -> float:
    """Seconds from an idle deployment to the first token of one prompt, without queueing.

    A step with all tokens of the prompt on one attention instance, plus the arithmetic of causal
    attention at the usual share of the data sheet's throughput. The rows are decode rows to the
    oracle, so this is a rough upper figure; its confidence is roofline.
    """
    oracle, model = problem.oracle, problem.oracle.model
    tokens = problem.workload.isl
    activated = min(float(one.slots), tokens * model.moe.router.top_k)
    if one.kind == "monolithic":
        load = oracle.monolithic_load(tokens, 0.0, one.num_attention, activated)
    else:
        assert one.plan != "all-to-all"
        load = oracle.pools_load(
            tokens, 0.0, 1, one.num_expert, activated, plan=one.plan, gating=one.gating
        )
    device = oracle.attention_side.device
    law = roofline_law(device, arithmetic(model.weight_format.name, frozenset(device.flops)))
    flops = sum(
        num_layers * tokens * kind.visible(tokens / 2) * kind.flops_per_position
        for kind, num_layers in model.attention_counts
    )
    return float(oracle.step_s(replace(load, slots=one.slots)) + law.s_per_flop * flops)
