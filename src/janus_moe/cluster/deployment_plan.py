"""From settings and a checkpoint's headers to a complete plan of the run, before anything starts.

Everything that can be wrong with a combination of model, shape and machine is found here, with
the fix in the message; everything left to "auto" is decided here and said once. How each thing is
decided stands in `cluster.deployment`. No process is started and no weight is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from janus_moe.cluster.activation_costs import resolve_costs
from janus_moe.cluster.deployment.memory_budget import MemoryBudget
from janus_moe.cluster.deployment.memory_division import divide_memory
from janus_moe.cluster.deployment.thread_counts import (
    InstanceCounts,
    computing_with,
    require_threads,
    threads_each,
)
from janus_moe.cluster.deployment.transport_choice import choose_exchange, choose_transport
from janus_moe.cluster.host_facts import HostFacts, host_facts
from janus_moe.cluster.hosts.shares import HostShare, first_membership, whole
from janus_moe.config import EngineConfig, TransportSetting
from janus_moe.experts.scheduling import runs_on_device
from janus_moe.model.checkpoint import Checkpoint, validate
from janus_moe.model.config import read_spec
from janus_moe.model.source import resolve_model
from janus_moe.planner.latency.link_profile import read_link_profile
from janus_moe.policy.placement import Placement, initial_placement, validate_shape
from janus_moe.policy.routing_trace import check_target
from janus_moe.spec import InstanceId, Membership, ModelSpec, Pool


@dataclass(frozen=True, slots=True)
class Host:
    """One host of a run.

    share: the instances it is to run.
    facts: what it has.
    """

    share: HostShare
    facts: HostFacts


@dataclass(frozen=True, slots=True)
class DeploymentPlan:
    """A run in which nothing is left to decide.

    config: the settings, without "auto" where it is decided before the start.
    folder: of the checkpoint.
    placement: the experts in the slots of every expert instance at the start.
    spare_slots: per layer and expert instance.
    num_kv_blocks: per attention instance.
    max_model_len: longest context, tokens.
    hosts: at least one; the engine's own is among them only if it runs instances.
    choices: what was automatic, as sentences for people.
    links: coefficient -> what messages cost; empty where nothing was measured.
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
        return _threads(host, pool, self.config, self.config.transport)


def this_host(config: EngineConfig) -> Host:
    """The only host of a run on one host, which runs everything."""
    return Host(whole(config.shape), host_facts(config.device))


def plan_deployment(config: EngineConfig, hosts: Sequence[Host]) -> DeploymentPlan:
    """Decides everything about a run or raises ConfigError or CheckpointError."""
    recording = None if config.record_routing is None else Path(config.record_routing).absolute()
    if recording is not None:
        check_target(recording)
    for host in hosts:
        require_threads(config.threads, host.facts.cores)
    folder = resolve_model(config.model)
    spec = _read_spec(config, folder)
    shares = [host.share for host in hosts]
    transport, transport_reason = choose_transport(config, shares)
    exchange, exchange_reason = choose_exchange(config, transport, shares)
    free = MemoryBudget(tuple(shares), tuple(host.facts.free_bytes for host in hosts))
    memory = divide_memory(config, spec, free)
    with_costs, cost_reason = resolve_costs(config, spec, _expert_threads(config, hosts, transport))
    reasons = (
        f"dtype {spec.dtype}" if config.dtype == "auto" else None,
        _slow_policy(config),
        transport_reason,
        *memory.reasons,
        cost_reason,
        exchange_reason,
    )
    return DeploymentPlan(
        config=msgspec.structs.replace(
            with_costs,
            dtype=spec.dtype,
            transport=transport,
            exchange=exchange,
            redundant_experts=memory.redundant_experts,
            rebalance_spare_slots=memory.spare_slots,
            max_model_len=memory.max_model_len,
            record_routing=None if recording is None else str(recording),
        ),
        spec=spec,
        folder=folder,
        placement=initial_placement(
            num_layers=len(spec.moe_layer_ids),
            num_experts=spec.moe.num_experts,
            num_instances=config.expert_instances,
            redundant_experts=memory.redundant_experts,
        ),
        spare_slots=memory.spare_slots,
        num_kv_blocks=memory.num_kv_blocks,
        max_model_len=memory.max_model_len,
        hosts=tuple(hosts),
        choices=tuple(reason for reason in reasons if reason is not None),
        links=_links(config),
    )


def _read_spec(config: EngineConfig, folder: Path) -> ModelSpec:
    """What the model is, once its checkpoint has all of it and the expert pool suits it."""
    spec = read_spec(folder, _dtype(config), config.device)
    explicit = 0 if config.redundant_experts == "auto" else config.redundant_experts
    validate_shape(spec.moe.num_experts, config.expert_instances, explicit)
    validate(Checkpoint.open(folder), spec)
    return spec


def _dtype(config: EngineConfig) -> Literal["auto", "float32", "bfloat16"]:
    """On a CPU "auto" is float32: bfloat16 weights lose nothing by it, and arithmetic is exact
    enough to give the tokens that the undivided model gives."""
    return "float32" if config.dtype == "auto" and config.device == "cpu" else config.dtype


def _slow_policy(config: EngineConfig) -> str | None:
    if config.device != "cuda" or runs_on_device(config.activation_policy):
        return None
    return (
        f"--activation-policy {config.activation_policy} runs on the CPU, which waits for the "
        "GPU in every layer (exact and aebs do not)"
    )


def _threads(host: Host, pool: Pool, config: EngineConfig, transport: TransportSetting) -> int:
    """Compute threads of one instance of `pool` on `host`."""
    share = host.share
    counts: InstanceCounts = {"attention": len(share.attention), "expert": len(share.expert)}
    computing = computing_with(pool, counts, transport, config.num_micro_batches)
    return threads_each(host.facts.cores, computing, config.threads)


def _expert_threads(
    config: EngineConfig, hosts: Sequence[Host], transport: TransportSetting
) -> int:
    """Compute threads of the expert instance that has the fewest."""
    return min(_threads(host, "expert", config, transport) for host in hosts if host.share.expert)


def _links(config: EngineConfig) -> dict[str, float]:
    """What `janus profile exchange` measured."""
    if config.exchange_profile is None:
        return {}
    return read_link_profile(Path(config.exchange_profile)).links
