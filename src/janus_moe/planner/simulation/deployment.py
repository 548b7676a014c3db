"""What a pool of GPUs can do: its steps, its KV cache, and the bytes each instance must load.

Built from the oracle. Knows no workload and no policy of scaling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from janus_moe.errors import ConfigError
from janus_moe.planner.latency import Oracle
from janus_moe.planner.latency.links import Gating
from janus_moe.planner.latency.sizes import (
    attention_side_bytes,
    kv_bytes_per_token,
    router_bytes,
)
from janus_moe.planner.search.memory import MemoryRules, even_slots, most_slots
from janus_moe.planner.simulation.max_activated import PoolMaxActivated, placement_of
from janus_moe.planner.simulation.state import BatchLimits
from janus_moe.planner.simulation.step_table import (
    AttentionTable,
    PoolSize,
    StepTable,
    tabulate,
    tabulate_attention,
)
from janus_moe.policy.activation import Policy
from janus_moe.spec import ExchangePlanName


@dataclass(frozen=True, kw_only=True)
class DeploymentStyle:
    """How a deployment works.

    slots: experts per instance and layer; None means those of all deployments.
    policy: which replica computes a token.
    exchange_plan, gating: of pools; monolithic ones have an all-to-all.
    micro_batches: of a step.
    """

    slots: int | None = None
    policy: Policy = "exact"
    exchange_plan: ExchangePlanName = "2pc-sharded"
    gating: Gating = "egate"
    micro_batches: int = 1

    def text(self, slots: int, *, monolithic: bool) -> str:
        """For reports."""
        exchange = "all-to-all" if monolithic else f"{self.exchange_plan}, {self.gating}"
        parts = f"{self.micro_batches} micro-batch{'es' if self.micro_batches > 1 else ''}"
        placement = placement_of(self.policy)
        return f"{slots} slots, {self.policy} on {placement} placement, {exchange}, {parts}"


@dataclass(frozen=True, eq=False, kw_only=True)
class SimDeployment:
    """A deployment that can be simulated.

    kv_blocks: per attention instance.
    attention_bytes, expert_bytes: weights that a new instance of either pool loads; a GPU of a
        monolithic one loads both.
    how: its style in words.
    """

    name: str
    size: PoolSize
    table: StepTable
    limits: BatchLimits
    kv_blocks: int
    attention_bytes: float
    expert_bytes: float
    how: str = ""

    def __post_init__(self) -> None:
        limits = self.limits
        if not 1 <= limits.max_num_seqs <= limits.max_num_batched_tokens:
            raise ConfigError(
                f"the simulator needs max_num_seqs from 1 to max_num_batched_tokens, got "
                f"{limits.max_num_seqs} and {limits.max_num_batched_tokens}"
            )
        if self.size.num_attention < 1 or self.kv_blocks < 1:
            raise ConfigError(
                f"{self.name}: {self.size.num_attention} attention instances with "
                f"{self.kv_blocks} KV blocks each serve nobody"
            )

    @property
    def num_gpus(self) -> int:
        return self.size.num_gpus

    def same_as(self, other: SimDeployment) -> bool:
        """Whether nothing would change."""
        return (self.name, self.how) == (other.name, other.how)


class Deployments:
    """Deployments of one model on given devices, by size and style; equal ones are made once.

    Monolithic ones are on the attention device.

    oracle: of model and devices.
    max_activated: of the busiest expert instance, by pool, slots, tokens and policy.
    limits: of a step and of a KV block.
    slots_per_expert: 1 or more, of pools whose style does not say; memory may allow fewer.
    """

    def __init__(
        self,
        oracle: Oracle,
        max_activated: PoolMaxActivated,
        limits: BatchLimits,
        slots_per_expert: float = 1.25,
    ) -> None:
        if not slots_per_expert >= 1:
            raise ConfigError(f"every expert needs a slot or more, got {slots_per_expert}")
        self.oracle, self._max_activated, self.limits = oracle, max_activated, limits
        self._slots_per_expert, self._memory = slots_per_expert, MemoryRules()
        self._sides: dict[tuple[int, int], AttentionTable] = {}
        self._known: dict[tuple[PoolSize, DeploymentStyle], SimDeployment | None] = {}

    def of(self, size: PoolSize, style: DeploymentStyle | None = None) -> SimDeployment | None:
        """None if weights do not fit or leave no room for KV."""
        key = size, style or DeploymentStyle()
        if key not in self._known:
            self._known[key] = self._build(*key)
        return self._known[key]

    def _build(self, size: PoolSize, style: DeploymentStyle) -> SimDeployment | None:
        oracle = self.oracle.on_one_device() if size.monolithic else self.oracle
        model, limits = oracle.model, self.limits
        instances = size.num_gpus if size.monolithic else size.num_expert
        slots = self._slots(oracle, size, instances, style)
        if slots is None:
            return None
        attention_bytes = float(attention_side_bytes(model, size.attention_tp))
        expert_bytes = slots * model.slot_bytes + router_bytes(model)
        room = self._memory.usable_bytes(oracle.attention_side) - attention_bytes
        room -= expert_bytes if size.monolithic else 0.0
        kv_bytes = float(kv_bytes_per_token(model, oracle.kv_format, size.attention_tp))
        kv_blocks = int(room / (kv_bytes * limits.block_size))
        if kv_blocks < 1:
            return None
        table = tabulate(
            oracle,
            size,
            lambda tokens: self._max_activated(instances, slots * instances, tokens, style.policy),
            self._attention_side(kv_blocks, size.attention_tp),
            style.micro_batches,
            slots,
            style.exchange_plan,
            style.gating,
        )
        return SimDeployment(
            name=str(size),
            size=size,
            table=table,
            limits=limits,
            kv_blocks=kv_blocks,
            attention_bytes=attention_bytes,
            expert_bytes=expert_bytes,
            how=style.text(slots, monolithic=size.monolithic),
        )

    def _slots(
        self, oracle: Oracle, size: PoolSize, instances: int, style: DeploymentStyle
    ) -> int | None:
        """Per layer and expert instance; None if the experts do not fit."""
        experts = oracle.model.moe.num_experts
        fit, pools = most_slots(oracle, self._memory), np.array([instances])
        if instances > experts or fit * instances < experts:
            return None
        if style.slots is not None:
            slots = min(style.slots, fit, experts)
            return slots if slots * instances >= experts else None
        redundancy = 1.0 if size.monolithic else self._slots_per_expert
        return int(even_slots(experts, pools, redundancy, fit)[0])

    def _attention_side(self, kv_blocks: int, tp: int) -> AttentionTable:
        if (kv_blocks, tp) not in self._sides:
            limits = self.limits
            self._sides[kv_blocks, tp] = tabulate_attention(
                self.oracle, limits.max_num_batched_tokens, kv_blocks * limits.block_size, tp
            )
        return self._sides[kv_blocks, tp]
