"""How long a context may be, and how many KV blocks an attention instance gets.

It knows bytes and blocks, not requests: how blocks are given out is `policy.paging`'s business.
"""

from __future__ import annotations

from janus_moe.config import EngineConfig
from janus_moe.errors import ConfigError
from janus_moe.model.memory import kv_block_bytes
from janus_moe.spec import ModelSpec

KV_SHARE = 0.4
"""Share of the memory left after weights and replicas that "auto" gives to the KV caches."""


def kv_cache_bytes(config: EngineConfig, num_instances: int, free_bytes: int) -> int:
    """Bytes that the KV cache of one attention instance may have.

    num_instances: of the attention pool.
    free_bytes: what the attention pool has left after weights and replicas.
    """
    return config.kv_cache_memory_bytes or int(free_bytes * KV_SHARE) // num_instances


def context_length(
    config: EngineConfig, spec: ModelSpec, cache_bytes: int
) -> tuple[int, str | None]:
    """The longest context in tokens: what the settings ask for, else what the cache holds.

    cache_bytes: see `kv_cache_bytes`.
    """
    limit = config.max_model_len
    if limit is not None and limit > spec.max_position:
        raise ConfigError(
            f"--max-model-len {limit} is beyond the {spec.max_position} positions of the model"
        )
    length = limit or spec.max_position
    block_bytes = kv_block_bytes(spec, config.block_size)
    if cache_bytes < block_bytes:
        raise ConfigError(
            f"the KV cache of an attention instance gets {cache_bytes} bytes, but one block of "
            f"--block-size {config.block_size} tokens has {block_bytes}; use "
            f"a larger --kv-cache-memory-bytes, at least {block_bytes}, or smaller blocks"
        )
    needed, affordable = _blocks(length, config.block_size), cache_bytes // block_bytes
    if needed <= affordable:
        return length, None
    fits = affordable * config.block_size
    if limit is not None:
        raise ConfigError(
            f"a context of {length} tokens needs "
            f"{needed * block_bytes / 2**20:.0f} MiB of KV cache "
            f"but an attention instance gets {cache_bytes / 2**20:.0f} MiB; "
            f"use --max-model-len {fits} or a larger --kv-cache-memory-bytes"
        )
    return fits, f"context {fits} tokens (what the KV cache memory holds)"


def kv_blocks(
    config: EngineConfig, spec: ModelSpec, cache_bytes: int, length: int
) -> tuple[int, str | None]:
    """KV blocks of one attention instance: no more than all its sequences can fill.

    cache_bytes: see `kv_cache_bytes`.
    length: see `context_length`.
    """
    block_bytes = kv_block_bytes(spec, config.block_size)
    full_load = config.max_num_seqs * _blocks(length, config.block_size)
    num_blocks = min(cache_bytes // block_bytes, full_load)
    if config.kv_cache_memory_bytes is not None:
        return num_blocks, None
    return num_blocks, f"KV cache {num_blocks * block_bytes / 2**20:.0f} MiB per attention instance"


def _blocks(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)
