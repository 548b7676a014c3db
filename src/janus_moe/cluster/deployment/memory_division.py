"""What the memory that weights leave goes to: spare slots, then replicas, then KV caches.

It puts the decisions of `expert_slots` and `kv_cache_size` one after the other; it decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from janus_moe.cluster.deployment.expert_slots import redundant_experts, spare_slots
from janus_moe.cluster.deployment.kv_cache_size import context_length, kv_blocks, kv_cache_bytes
from janus_moe.cluster.deployment.memory_budget import MemoryBudget
from janus_moe.cluster.deployment.memory_check import less_weights, require_room
from janus_moe.config import EngineConfig
from janus_moe.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class MemoryDivision:
    """What the memory goes to besides weights.

    spare_slots: per layer and expert instance.
    redundant_experts: additional replicas per layer.
    max_model_len: longest context, tokens.
    num_kv_blocks: per attention instance.
    reasons: of these four, in this order; None where nothing was automatic.
    """

    spare_slots: int
    redundant_experts: int
    max_model_len: int
    num_kv_blocks: int
    reasons: tuple[str | None, ...]


def divide_memory(config: EngineConfig, spec: ModelSpec, free: MemoryBudget) -> MemoryDivision:
    """Gives each in turn from what the ones before have left; raises ConfigError.

    free: what every host has before anything is loaded.
    """
    budget = less_weights(free, spec)
    attention, experts = budget.num_attention_instances, budget.num_expert_instances
    spare, spare_reason = spare_slots(config, spec, experts, budget.for_experts())
    budget = budget.less_experts(spare * experts * spec.slot_bytes)
    redundant, redundant_reason = redundant_experts(config, spec, experts, budget.for_experts())
    budget = budget.less_experts(redundant * spec.slot_bytes)
    require_room(budget, config)
    cache_bytes = kv_cache_bytes(config, attention, budget.for_attention())
    length, length_reason = context_length(config, spec, cache_bytes)
    num_blocks, blocks_reason = kv_blocks(config, spec, cache_bytes, length)
    reasons = (spare_reason, redundant_reason, length_reason, blocks_reason)
    return MemoryDivision(spare, redundant, length, num_blocks, reasons)
