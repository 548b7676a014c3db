"""A model and devices small enough to plan for by hand."""

from __future__ import annotations

import msgspec

from janus_moe.families import describe_model
from janus_moe.planner.latency import Oracle
from janus_moe.planner.search.activation import ActivationSource, uniform
from janus_moe.planner.search.problem import Prefill, Problem, Rate, RequestLengths, ServiceDemand
from janus_moe.spec import ModelSpec


def small_model(num_experts: int = 16, top_k: int = 2) -> ModelSpec:
    """About 70 GB of experts in bfloat16, so that one device does not hold all of them."""
    config = {
        "model_type": "qwen3_moe", "num_hidden_layers": 24, "mlp_only_layers": [0],
        "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "num_experts": num_experts, "num_experts_per_tok": top_k, "moe_intermediate_size": 7168,
        "intermediate_size": 8192, "vocab_size": 32000, "max_position_embeddings": 32768,
    }  # fmt: skip
    return msgspec.structs.replace(describe_model(config).spec, name="small")


def problem(
    demand: ServiceDemand | float = 2000.0,
    tpot_ms: float = 30.0,
    max_gpus: int = 8,
    *,
    isl: float = 512,
    osl: float = 256,
    system: str = "h100_sxm",
    expert_system: str | None = None,
    activation: ActivationSource | None = None,
    model: ModelSpec | None = None,
    objective: str = "gpus",
    prefill: Prefill = "included",
) -> Problem:
    """demand: in tokens per second where it is a number."""
    facts = model or small_model()
    return Problem(
        oracle=Oracle.build(facts, system, expert_system),
        activation=activation or uniform(facts.moe.num_experts, facts.moe.router.top_k),
        lengths=RequestLengths(isl=isl, osl=osl),
        demand=Rate(demand) if isinstance(demand, int | float) else demand,
        tpot_s=tpot_ms / 1e3,
        max_gpus=max_gpus,
        objective=objective,  # type: ignore[arg-type]
        prefill=prefill,
    )
