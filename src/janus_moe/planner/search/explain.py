"""Where each microsecond and each gigabyte of a deployment goes, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from janus_moe.planner.latency.coefficients import roofline_law
from janus_moe.planner.latency.estimate import Estimate
from janus_moe.planner.latency.precision import arithmetic
from janus_moe.planner.latency.step import StepEstimate
from janus_moe.planner.search.answers import Deployment
from janus_moe.planner.search.memory import MemoryNeed, attention_need, expert_need, monolithic_need
from janus_moe.planner.search.problem import Problem
from janus_moe.planner.search.shapes import Shapes


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
    return problem.oracle.step(Shapes.of(problem, one).load(one.batch))


def prompt_step_s(problem: Problem, one: Deployment) -> float:
    """A step in which prompts are computed, at the deployment's batch and a_max."""
    return float(Shapes.of(problem, one).times(one.batch).mixed)


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
    tokens = problem.lengths.isl
    activated = min(float(one.slots), tokens * model.moe.router.top_k)
    alone = replace(one, activated=activated, micro_batches=1, attention_tp=1)
    if one.kind == "pools":
        alone = replace(alone, num_attention=1)
    load = replace(Shapes.of(problem, alone).load(tokens), context=0.0)
    device = oracle.attention_side.device
    law = roofline_law(device, arithmetic(model.weight_format.name, frozenset(device.flops)))
    flops = sum(
        num_layers * tokens * kind.visible(tokens / 2) * kind.flops_per_position
        for kind, num_layers in model.attention_counts
    )
    return float(oracle.step_s(load) + law.s_per_flop * flops)
