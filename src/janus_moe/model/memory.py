"""How many bytes of weights and cache an instance holds, for planning before anything is read.

It counts what `model.tensors` lists; it knows neither devices nor what else a process needs.
"""

from __future__ import annotations

from collections.abc import Sequence

from janus_moe.model.tensors import attention_tensors, router_tensors
from janus_moe.spec import ModelSpec


def attention_bytes(spec: ModelSpec) -> int:
    """Weights of one attention instance; the sum its loading reports as progress."""
    return sum(info.num_bytes for info in attention_tensors(spec))


def expert_pool_bytes(spec: ModelSpec, slots_per_layer: Sequence[Sequence[int]]) -> int:
    """Weights of one expert instance with these slots; the sum its loading reports."""
    routers = sum(info.num_bytes for info in router_tensors(spec))
    return routers + spec.expert_bytes * sum(len(slots) for slots in slots_per_layer)


def kv_block_bytes(spec: ModelSpec, block_size: int) -> int:
    """KV cache of one block over all layers."""
    return spec.kv_bytes_per_token * block_size
