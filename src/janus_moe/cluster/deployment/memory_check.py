"""Whether what is planned fits into the memory of every host, with the setting to change if not.

It knows bytes, not how the numbers were chosen.
"""

from __future__ import annotations

from janus_moe.cluster.deployment.memory_budget import MemoryBudget
from janus_moe.cluster.hosts.shares import HostShare
from janus_moe.config import EngineConfig
from janus_moe.errors import ConfigError
from janus_moe.model.memory import attention_bytes, expert_pool_bytes
from janus_moe.spec import ModelSpec


def less_weights(budget: MemoryBudget, spec: ModelSpec) -> MemoryBudget:
    """What every host has left for replicas and KV caches; raises ConfigError.

    budget: what is free before anything is loaded.
    """
    one_copy = [range(spec.moe.num_experts)] * len(spec.moe_layer_ids)
    attention = attention_bytes(spec) * budget.num_attention_instances
    after = budget.less_attention(attention).less_experts(expert_pool_bytes(spec, one_copy))
    share, left = after.poorest
    if left < 0:
        free_bytes = budget.left[budget.shares.index(share)]
        raise ConfigError(
            f"{_on(share)}the weights need {(free_bytes - left) / 2**30:.1f} GiB in {spec.dtype} "
            f"({len(share.attention)} attention copies and {len(share.expert)} of "
            f"{budget.num_expert_instances} parts of the experts) but only "
            f"{free_bytes / 2**30:.1f} GiB are free; "
            "use fewer --attention-instances, --dtype bfloat16 or a smaller model"
        )
    return after


def require_room(budget: MemoryBudget, config: EngineConfig) -> None:
    """Raises ConfigError when slots and caches that the settings ask for do not fit.

    budget: what weights, replicas and spare slots leave; below 0 where they do not fit.
    """
    share, left = budget.poorest
    if left < 0:
        raise ConfigError(
            f"{_on(share)}--redundant-experts {config.redundant_experts} and "
            f"--rebalance-spare-slots {config.rebalance_spare_slots} need "
            f"{-left / 2**30:.1f} GiB more memory than is free; use fewer"
        )
    caches = (config.kv_cache_memory_bytes or 0) * budget.num_attention_instances
    share, left = budget.less_attention(caches).poorest
    if left < 0:
        raise ConfigError(
            f"{_on(share)}--kv-cache-memory-bytes {config.kv_cache_memory_bytes} for each of "
            f"{len(share.attention)} attention instances is {-left / 2**30:.1f} GiB more than the "
            "weights leave free; use less"
        )


def _on(share: HostShare) -> str:
    return "" if share.is_local else f"on host {share.name} "
