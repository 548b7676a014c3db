"""A deployment as the settings of `janus serve`: a YAML text for each copy."""

from __future__ import annotations

import math

from janus_moe.planner.latency import ServeSource
from janus_moe.planner.search.answers import Deployment
from janus_moe.planner.search.problem import Problem

HEADROOM = 1.25
"""Sequences per attention instance beyond the mean, for requests that come in bursts."""


def serve_settings(problem: Problem, one: Deployment, model: str) -> dict[str, str | int]:
    """Keys and values of `janus serve --config`, for one copy.

    model: name, id or folder.
    """
    oracle, experts = problem.oracle, problem.oracle.model.moe.num_experts
    sequences = max(1, math.ceil(HEADROOM * one.batch / one.num_attention))
    longest = math.ceil(problem.lengths.isl + problem.lengths.osl)
    positions = problem.oracle.model.max_position
    several: dict[str, str | int] = {}
    if one.kind == "pools" and one.micro_batches > 1:  # where the oracle says that it pays
        several = {"micro-batch-threshold": max(2, math.ceil(one.batch / one.num_attention))}
    return {
        "model": model,
        "attention-instances": one.num_attention,
        "expert-instances": one.num_expert,
        "redundant-experts": max(0, one.num_expert * one.slots - experts),
        "activation-policy": one.policy,
        "max-num-seqs": sequences,
        "max-num-batched-tokens": max(problem.batching.max_prompt_tokens, sequences),
        "max-model-len": min(longest, positions) if positions else longest,
        "dtype": "bfloat16" if oracle.measured is None else oracle.model.dtype,
        **several,
    }


def serve_yaml(problem: Problem, one: Deployment, source: ServeSource) -> str:
    """Returns the file, with what it is for and what it promises as comments."""
    oracle = problem.oracle
    devices = oracle.attention_side.device.name
    if one.kind == "pools":
        devices = f"{devices} for attention, {oracle.expert_side.device.name} for experts"
    notes = [
        f"{oracle.model.name} on {devices}: {one.shape}, {one.gpus} GPUs",
        f"{one.tokens_per_s:,.0f} output tokens/s at {1e3 * one.tpot_s:.1f} ms per token, "
        f"{one.copies * one.batch:,.0f} requests at once",
        f"exchange {one.exchange_plan}, {one.micro_batches} micro-batches; made by `janus plan`",
    ]
    if one.copies > 1:
        notes.append(f"start {one.copies} of these and divide the requests among them")
    if one.kind == "monolithic":
        notes.append("monolithic: every device is meant to hold both halves")
    if one.attention_tp > 1:
        notes.append(
            f"the plan has {one.attention_tp} devices share the heads of attention, which `janus "
            "serve` does not do yet"
        )
    notes += [f"janus serve cannot serve this model: {why}" for why in source.obstacles]
    lines = [f"# {note}" for note in notes]
    lines += [
        f"{key}: {value}" for key, value in serve_settings(problem, one, source.model).items()
    ]
    return "\n".join(lines) + "\n"
