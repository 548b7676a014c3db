"""A look at the load of the whole engine. Plain values; knows nothing of who shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from janus_moe.spec import InstanceId, Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class DurationTotal:
    """How often something happened and how long it took altogether, since the start."""

    count: int = 0
    total_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSnapshot:
    """Load of the whole engine at one moment; counters run since the start.

    running: requests in a batch.
    waiting: requests that are queued.
    kv_usage: used share of the KV blocks, 0 to 1, over all attention instances.
    preemptions: requests that gave their KV blocks back for a while.
    readmissions: requests that were given to another attention instance.
    dropped_outputs: what was said of a request and was not of its admission, or did not come next.
    pool_sizes: number of instances by pool.
    activated_experts: by expert instance, mean distinct experts activated per MoE layer pass.
    max_activated_experts: the same for the busiest instance of each pass.
    layer_passes: MoE layer passes these means are over.
    expert_load_imbalance: busiest expert instance over the mean, 1 is perfect, 0 is unknown.
    dispatch, combine, scheduler: one count per engine step.
    placement_epoch: the latest that a step reported.
    exchange_plan: of the latest step over the network; "" for none.
    exchange_steps: steps by plan, as the attention instance of rank 0 took part in them.
    """

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    readmissions: int = 0
    dropped_outputs: int = 0
    pool_sizes: Mapping[Pool, int] = field(default_factory=dict)
    activated_experts: Mapping[InstanceId, float] = field(default_factory=dict)
    max_activated_experts: float = 0.0
    layer_passes: int = 0
    expert_load_imbalance: float = 0.0
    dispatch: DurationTotal = DurationTotal()
    combine: DurationTotal = DurationTotal()
    scheduler: DurationTotal = DurationTotal()
    placement_epoch: int = 0
    exchange_plan: str = ""
    exchange_steps: Mapping[str, int] = field(default_factory=dict)
