"""Which implementation of `rotate_and_cache` runs: decided here and nowhere else."""

import torch

from janus_moe.kernels.rotate_and_cache.fused import rotate_and_cache_fused
from janus_moe.kernels.rotate_and_cache.reference import rotate_and_cache_reference


def rotate_and_cache(
    qkv: torch.Tensor,
    norm: torch.Tensor | None,
    eps: float,
    rotation: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> torch.Tensor:
    """Normalises and rotates queries and keys and stores keys and values in the paged cache.

    qkv: [tokens, heads + 2 * kv_heads, head_dim], queries, keys, values; may be overwritten
    norm: [heads + kv_heads, head_dim] weight of the RMS norm of each query and key head; None: no
        norm; eps: its epsilon
    rotation: [tokens, 1, head_dim / 2] complex64, factors of adjacent pairs
    keys, values: [blocks, block_size, kv_heads, head_dim], of qkv's dtype
    slot_mapping: [tokens] int64, block * block_size + offset

    Returns the queries, [tokens, heads, head_dim] in qkv's dtype.
    """
    tensors = [qkv, rotation, keys, values] + ([] if norm is None else [norm])
    fits = qkv.dtype == torch.float32 and qkv.device.type == "cpu"
    if fits and all(t.is_contiguous() for t in tensors):
        return rotate_and_cache_fused(qkv, norm, eps, rotation, keys, values, slot_mapping)
    return rotate_and_cache_reference(qkv, norm, eps, rotation, keys, values, slot_mapping)
