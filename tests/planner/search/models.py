"""A model and devices small enough to plan for by hand."""

from __future__ import annotations

from janus_moe.planner.latency import ModelFacts, Oracle
from janus_moe.planner.latency.models import GqaFacts
from janus_moe.planner.search.activation import ActivationSource, uniform
from janus_moe.planner.search.problem import Prefill, Problem, Rate, RequestLengths, ServiceDemand


def small_model(num_experts: int = 16, top_k: int = 2) -> ModelFacts:
    """About 70 GB of experts in bfloat16, so that one device does not hold all of them."""
    return ModelFacts(
        name="small",
        title="Small",
        source="a test",
        num_layers=24,
        num_dense_layers=1,
        hidden_size=4096,
        attention=GqaFacts(num_heads=32, num_kv_heads=8, head_dim=128),
        num_experts=num_experts,
        top_k=top_k,
        expert_width=7168,
        dense_width=8192,
        vocab_size=32000,
    )


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
    model: ModelFacts | None = None,
    objective: str = "gpus",
    prefill: Prefill = "included",
) -> Problem:
    """demand: in tokens per second where it is a number."""
    facts = model or small_model()
    return Problem(
        oracle=Oracle.build(facts, system, expert_system),
        activation=activation or uniform(facts.num_experts, facts.top_k),
        workload=RequestLengths(isl=isl, osl=osl),
        demand=Rate(demand) if isinstance(demand, int | float) else demand,
        tpot_s=tpot_ms / 1e3,
        max_gpus=max_gpus,
        objective=objective,  # type: ignore[arg-type]
        prefill=prefill,
    )
