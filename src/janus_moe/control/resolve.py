"""From settings and a checkpoint's headers to a complete plan of the run, before anything starts.

Everything that can be wrong with a combination of model, shape and machine is found here, with
the fix in the message; everything left to "auto" is decided here and said once. No process is
started and no weight is read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from janus_moe.config import EngineConfig, TransportName
from janus_moe.control.costs import with_costs
from janus_moe.errors import ConfigError
from janus_moe.model.checkpoint import Checkpoint, validate
from janus_moe.model.config import read_spec
from janus_moe.model.memory import attention_bytes, expert_pool_bytes, kv_block_bytes
from janus_moe.model.source import resolve_model
from janus_moe.policy.placement import (
    Placement,
    auto_redundancy,
    initial_placement,
    validate_shape,
)
from janus_moe.policy.routing_trace import check_target
from janus_moe.spec import ModelSpec

KV_SHARE = 0.4
"""Share of the memory left after the weights that "auto" gives to the KV caches."""
REPLICA_SHARE = 0.4
"""Share of the memory left after the weights that "auto" gives to redundant experts."""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """cores: usable by this process. free_bytes: memory available on the serving device."""

    cores: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run in which nothing is left to decide.

    spare_slots: per layer and expert instance. num_kv_blocks: per attention instance.
    choices: what was automatic, as sentences for people.
    """

    config: EngineConfig
    spec: ModelSpec
    folder: Path
    placement: Placement
    spare_slots: int
    num_kv_blocks: int
    max_model_len: int
    attention_threads: int
    expert_threads: int
    num_cores: int
    choices: tuple[str, ...]


def host_facts(device: str) -> HostFacts:
    """What this machine has to give."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("--device cuda: torch sees no CUDA device here; use --device cpu")
        return HostFacts(cores=cores or 1, free_bytes=int(torch.cuda.mem_get_info()[0]))
    return HostFacts(cores=cores or 1, free_bytes=psutil.virtual_memory().available)


def resolve_run(config: EngineConfig, facts: HostFacts) -> RunPlan:
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
    transport = _transport(config, choices)
    free = _free_after_weights(config, spec, facts)
    one_slot = spec.expert_bytes * len(spec.moe_layer_ids)
    spare = _spare_slots(config, spec, int(free * REPLICA_SHARE), choices)
    free -= spare * config.expert_instances * one_slot
    redundant = _redundancy(config, spec, int(free * REPLICA_SHARE), choices)
    free -= redundant * one_slot
    _check_explicit_memory(config, free)
    max_model_len, num_blocks = _kv_size(config, spec, int(free * KV_SHARE), choices)
    placement = initial_placement(
        num_layers=len(spec.moe_layer_ids),
        num_experts=spec.moe.num_experts,
        num_instances=config.expert_instances,
        redundant_experts=redundant,
    )
    shared_process = transport == "loopback"
    threads = config.threads
    expert_sharers = 1 if shared_process else config.expert_instances
    expert_threads = threads or max(1, facts.cores // expert_sharers)
    resolved = msgspec.structs.replace(
        with_costs(config, spec, expert_threads, choices),
        dtype=spec.dtype,
        transport=transport,
        redundant_experts=redundant,
        rebalance_spare_slots=spare,
        max_model_len=max_model_len,
        record_routing=None if recording is None else str(recording),
    )
    return RunPlan(
        config=resolved,
        spec=spec,
        folder=folder,
        placement=placement,
        spare_slots=spare,
        num_kv_blocks=num_blocks,
        max_model_len=max_model_len,
        attention_threads=threads or max(1, facts.cores // config.attention_instances),
        expert_threads=expert_threads,
        num_cores=facts.cores,
        choices=tuple(choices),
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
    needed = config.expert_instances * spec.expert_bytes * len(spec.moe_layer_ids)
    spare = 1 if needed <= budget_bytes or config.rebalance_interval else 0
    choices.append(f"{spare} spare slots per layer and expert instance")
    return spare


def _transport(config: EngineConfig, choices: list[str]) -> TransportName:
    if config.transport != "auto":
        return config.transport
    single = config.shape.attention == config.shape.expert == 1
    transport: TransportName = "loopback" if single or config.device == "cuda" else "shm"
    choices.append(f"transport {transport}")
    return transport


def _free_after_weights(config: EngineConfig, spec: ModelSpec, facts: HostFacts) -> int:
    """Bytes left for replicas and KV caches; all instances share this host's memory."""
    one_copy = [range(spec.moe.num_experts)] * len(spec.moe_layer_ids)
    experts = expert_pool_bytes(spec, one_copy)
    weights = attention_bytes(spec) * config.attention_instances + experts
    if weights > facts.free_bytes:
        raise ConfigError(
            f"the weights need {weights / 2**30:.1f} GiB in {spec.dtype} "
            f"({config.attention_instances} attention copies and the experts) but only "
            f"{facts.free_bytes / 2**30:.1f} GiB are free; "
            "use fewer --attention-instances, --dtype bfloat16 or a smaller model"
        )
    return facts.free_bytes - weights


def _check_explicit_memory(config: EngineConfig, free_bytes: int) -> None:
    """free_bytes: left after weights, replicas and spare slots; below 0 when they do not fit."""
    if free_bytes < 0:
        raise ConfigError(
            f"--redundant-experts {config.redundant_experts} and --rebalance-spare-slots "
            f"{config.rebalance_spare_slots} need {-free_bytes / 2**30:.1f} GiB more memory than "
            "is free; use fewer"
        )
    caches = (config.kv_cache_memory_bytes or 0) * config.attention_instances
    if caches > free_bytes:
        raise ConfigError(
            f"--kv-cache-memory-bytes asks for {caches / 2**30:.1f} GiB over all attention "
            f"instances but {free_bytes / 2**30:.1f} GiB are free after the weights"
        )


def _redundancy(
    config: EngineConfig, spec: ModelSpec, budget_bytes: int, choices: list[str]
) -> int:
    if config.redundant_experts != "auto":
        return config.redundant_experts
    redundant = auto_redundancy(
        free_bytes=budget_bytes,
        expert_bytes_all_layers=spec.expert_bytes * len(spec.moe_layer_ids),
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
