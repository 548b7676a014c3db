"""From settings and a checkpoint's headers to a complete plan of the run, before anything starts.

Everything that can be wrong with a combination of model, shape and machine is found here, with
the fix in the message; everything left to "auto" is decided here and said once. No process is
started and no weight is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from janus_moe.cluster.activation_costs import with_costs
from janus_moe.cluster.host_facts import HostFacts, host_facts
from janus_moe.cluster.hosts.shares import HostShare, first_membership, whole
from janus_moe.cluster.memory_budget import MemoryBudget
from janus_moe.config import EngineConfig, TransportName
from janus_moe.errors import ConfigError
from janus_moe.experts.scheduling import runs_on_device
from janus_moe.model.checkpoint import Checkpoint, validate
from janus_moe.model.config import read_spec
from janus_moe.model.memory import attention_bytes, expert_pool_bytes, kv_block_bytes
from janus_moe.model.source import resolve_model
from janus_moe.planner.latency.link_profile import read_link_profile
from janus_moe.policy.placement import (
    Placement,
    auto_redundancy,
    initial_placement,
    validate_shape,
)
from janus_moe.policy.routing_trace import check_target
from janus_moe.spec import ExchangePlanName, InstanceId, Membership, ModelSpec, Pool

KV_SHARE = 0.4
"""Share of the memory left after the weights that "auto" gives to the KV caches."""
REPLICA_SHARE = 0.4
"""Share of the memory left after the weights that "auto" gives to redundant experts."""


@dataclass(frozen=True, slots=True)
class Host:
    """One host of a run: what it is to do, and what it has."""

    share: HostShare
    facts: HostFacts


@dataclass(frozen=True, slots=True)
class DeploymentPlan:
    """A run in which nothing is left to decide.

    spare_slots: per layer and expert instance. num_kv_blocks: per attention instance.
    hosts: at least one; the engine's own is among them only if it runs instances.
    choices: what was automatic, as sentences for people. links: what messages cost, if measured.
    """

    config: EngineConfig
    spec: ModelSpec
    folder: Path
    placement: Placement
    spare_slots: int
    num_kv_blocks: int
    max_model_len: int
    hosts: tuple[Host, ...]
    choices: tuple[str, ...]
    links: dict[str, float] = field(default_factory=dict)

    @property
    def membership(self) -> Membership:
        """The pools that the run starts with."""
        return first_membership([host.share for host in self.hosts], self.placement.epoch)

    def host_of(self, instance: InstanceId) -> Host:
        """The host that runs an instance."""
        return self.hosts[self.membership.host_of(instance)]

    def threads(self, host: Host, pool: Pool) -> int:
        """Compute threads of one instance of `pool` on `host`."""
        return threads_on(host, pool, self.config, self.config.transport)


def threads_on(host: Host, pool: Pool, config: EngineConfig, transport: TransportName) -> int:
    """Compute threads of one instance: the instances of a pool share the cores; the pools take
    turns, unless several micro-batches are under way."""
    share = host.share
    sharers = len(share.attention if pool == "attention" else share.expert)
    if pool == "expert" and transport == "loopback":
        sharers = 1  # one after the other
    if config.num_micro_batches > 1:
        sharers = len(share.instances)
    return config.threads or max(1, host.facts.cores // max(1, sharers))


def this_host(config: EngineConfig) -> Host:
    """A run on one host: everything is here."""
    return Host(whole(config.shape), host_facts(config.device))


def plan_deployment(config: EngineConfig, hosts: Sequence[Host]) -> DeploymentPlan:
    """Decides everything about a run or raises ConfigError or CheckpointError."""
    recording = None if config.record_routing is None else Path(config.record_routing).absolute()
    if recording is not None:
        check_target(recording)
    folder = resolve_model(config.model)
    spec = read_spec(folder, _dtype(config), config.device)
    validate_shape(spec.moe.num_experts, config.expert_instances, _explicit_redundancy(config))
    checkpoint = Checkpoint.open(folder)
    validate(checkpoint, spec)
    choices: list[str] = []
    if config.dtype == "auto":
        choices.append(f"dtype {spec.dtype}")
    if config.device == "cuda" and not runs_on_device(config.activation_policy):
        choices.append(
            f"--activation-policy {config.activation_policy} runs on the CPU, which waits for the "
            "GPU in every layer (exact and aebs do not)"
        )
    transport = _transport(config, hosts, choices)
    budget = _free_after_weights(config, spec, hosts)
    one_slot = spec.slot_bytes
    spare = _spare_slots(config, spec, int(budget.for_experts() * REPLICA_SHARE), choices)
    budget = budget.less_experts(spare * config.expert_instances * one_slot)
    redundant = _redundancy(config, spec, int(budget.for_experts() * REPLICA_SHARE), choices)
    budget = budget.less_experts(redundant * one_slot)
    _check_explicit_memory(config, budget)
    kv_bytes = int(budget.for_attention() * KV_SHARE)
    max_model_len, num_blocks = _kv_size(config, spec, kv_bytes, choices)
    placement = initial_placement(
        num_layers=len(spec.moe_layer_ids),
        num_experts=spec.moe.num_experts,
        num_instances=config.expert_instances,
        redundant_experts=redundant,
    )
    expert_threads = min(
        threads_on(host, "expert", config, transport) for host in hosts if host.share.expert
    )
    resolved = msgspec.structs.replace(
        with_costs(config, spec, expert_threads, choices),
        dtype=spec.dtype,
        transport=transport,
        exchange=_exchange(config, transport, hosts, choices),
        redundant_experts=redundant,
        rebalance_spare_slots=spare,
        max_model_len=max_model_len,
        record_routing=None if recording is None else str(recording),
    )
    return DeploymentPlan(
        config=resolved,
        spec=spec,
        folder=folder,
        placement=placement,
        spare_slots=spare,
        num_kv_blocks=num_blocks,
        max_model_len=max_model_len,
        hosts=tuple(hosts),
        choices=tuple(choices),
        links=_links(config),
    )


def _dtype(config: EngineConfig) -> Literal["auto", "float32", "bfloat16"]:
    """On a CPU "auto" is float32: bfloat16 weights lose nothing by it, and arithmetic is exact
    enough to give the tokens that the undivided model gives."""
    return "float32" if config.dtype == "auto" and config.device == "cpu" else config.dtype


def _explicit_redundancy(config: EngineConfig) -> int:
    return 0 if config.redundant_experts == "auto" else config.redundant_experts


def _spare_slots(
    config: EngineConfig, spec: ModelSpec, budget_bytes: int, choices: list[str]
) -> int:
    """None where there is nothing to move between; never more than an instance could need."""
    if config.expert_instances == 1:
        if config.rebalance_interval:
            raise ConfigError(
                f"--rebalance-interval {config.rebalance_interval:g} needs instances to move "
                "experts between; use --expert-instances 2 or more"
            )
        return 0
    if config.rebalance_spare_slots != "auto":
        return min(config.rebalance_spare_slots, spec.moe.num_experts)
    needed = config.expert_instances * spec.slot_bytes
    spare = 1 if needed <= budget_bytes or config.rebalance_interval else 0
    choices.append(f"{spare} spare slots per layer and expert instance")
    return spare


def _transport(config: EngineConfig, hosts: Sequence[Host], choices: list[str]) -> TransportName:
    if not all(host.share.is_local for host in hosts):
        if config.device == "cuda":
            raise ConfigError(
                "--device cuda runs all instances on one GPU of this host; use --device cpu with "
                "--hosts"
            )
        if config.transport not in ("auto", "gloo"):
            raise ConfigError(
                f"--transport {config.transport} stays on one host, but --hosts names "
                f"{', '.join(host.share.name for host in hosts)}; use --transport gloo (or auto)"
            )
        return "gloo"
    if config.transport != "auto":
        return config.transport
    single = config.shape.attention == config.shape.expert == 1 == config.num_micro_batches
    transport: TransportName = "loopback" if single or config.device == "cuda" else "shm"
    choices.append(f"transport {transport}")
    return transport


def _exchange(
    config: EngineConfig, transport: TransportName, hosts: Sequence[Host], choices: list[str]
) -> Literal["auto", ExchangePlanName]:
    """One phase where no host has two instances to aggregate for, else the adaptive choice."""
    if transport != "gloo":
        if config.exchange != "auto":
            raise ConfigError(
                f"--exchange {config.exchange} is about messages between hosts, but the transport "
                f"is {transport}; use --transport gloo or leave --exchange out"
            )
        return "auto"
    if config.exchange != "auto":
        return config.exchange
    shared = len(hosts) > 1 and any(len(host.share.instances) > 1 for host in hosts)
    if not shared:
        choices.append("exchange 1pc")
    return "auto" if shared else "1pc"


def _links(config: EngineConfig) -> dict[str, float]:
    """What `janus profile exchange` measured."""
    if config.exchange_profile is None:
        return {}
    return read_link_profile(Path(config.exchange_profile)).links


def _free_after_weights(
    config: EngineConfig, spec: ModelSpec, hosts: Sequence[Host]
) -> MemoryBudget:
    """What every host has left for replicas and KV caches."""
    one_copy = [range(spec.moe.num_experts)] * len(spec.moe_layer_ids)
    experts = expert_pool_bytes(spec, one_copy)
    attention = attention_bytes(spec) * config.attention_instances
    free = MemoryBudget(
        tuple(host.share for host in hosts), tuple(host.facts.free_bytes for host in hosts)
    )
    budget = free.less_attention(attention).less_experts(experts)
    share, left = budget.poorest
    if left < 0:
        free_bytes = free.left[budget.shares.index(share)]
        raise ConfigError(
            f"{_on(share)}the weights need {(free_bytes - left) / 2**30:.1f} GiB in {spec.dtype} "
            f"({len(share.attention)} attention copies and {len(share.expert)} of "
            f"{config.expert_instances} parts of the experts) but only "
            f"{free_bytes / 2**30:.1f} GiB are free; "
            "use fewer --attention-instances, --dtype bfloat16 or a smaller model"
        )
    return budget


def _on(share: HostShare) -> str:
    return "" if share.is_local else f"on host {share.name} "


def _check_explicit_memory(config: EngineConfig, budget: MemoryBudget) -> None:
    """budget: what weights, replicas and spare slots leave; below 0 where they do not fit."""
    share, left = budget.poorest
    if left < 0:
        raise ConfigError(
            f"{_on(share)}--redundant-experts {config.redundant_experts} and "
            f"--rebalance-spare-slots {config.rebalance_spare_slots} need "
            f"{-left / 2**30:.1f} GiB more memory than is free; use fewer"
        )
    caches = (config.kv_cache_memory_bytes or 0) * config.attention_instances
    share, left = budget.less_attention(caches).poorest
    if left < 0:
        raise ConfigError(
            f"{_on(share)}--kv-cache-memory-bytes {config.kv_cache_memory_bytes} for each of "
            f"{len(share.attention)} attention instances is {-left / 2**30:.1f} GiB more than the "
            "weights leave free; use less"
        )


def _redundancy(
    config: EngineConfig, spec: ModelSpec, budget_bytes: int, choices: list[str]
) -> int:
    if config.redundant_experts != "auto":
        return config.redundant_experts
    redundant = auto_redundancy(
        free_bytes=budget_bytes,
        expert_bytes_all_layers=spec.slot_bytes,
        num_experts=spec.moe.num_experts,
        num_instances=config.expert_instances,
    )
    choices.append(f"{redundant} redundant experts per layer")
    return redundant


def _kv_size(
    config: EngineConfig, spec: ModelSpec, budget_bytes: int, choices: list[str]
) -> tuple[int, int]:
    """(context length, KV blocks per attention instance) that the settings or memory allow."""
    limit = config.max_model_len
    if limit is not None and limit > spec.max_position:
        raise ConfigError(
            f"--max-model-len {limit} is beyond the {spec.max_position} positions of the model"
        )
    length = limit or spec.max_position
    block_bytes = kv_block_bytes(spec, config.block_size)
    per_instance = config.kv_cache_memory_bytes or budget_bytes // config.attention_instances
    affordable = per_instance // block_bytes
    full_load = config.max_num_seqs * _blocks(length, config.block_size)
    num_blocks = min(affordable, full_load)
    if num_blocks < _blocks(length, config.block_size):
        fits = affordable * config.block_size
        if limit is not None or fits < 1:
            raise ConfigError(
                f"a context of {length} tokens needs "
                f"{_blocks(length, config.block_size) * block_bytes / 2**20:.0f} MiB of KV cache "
                f"but an attention instance gets {per_instance / 2**20:.0f} MiB; "
                f"use --max-model-len {max(fits, 1)} or a larger --kv-cache-memory-bytes"
            )
        length = fits
        choices.append(f"context {length} tokens (what the KV cache memory holds)")
    if config.kv_cache_memory_bytes is None:
        size = num_blocks * block_bytes / 2**20
        choices.append(f"KV cache {size:.0f} MiB per attention instance")
    return length, num_blocks


def _blocks(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)
