"""CPU kernel that does all of it in one pass over the projections of a few tokens.

A decode step spends more time on starting seven small operations than in them. One thread: the
work of a token is a few thousand operations. A token's result does not depend on the others.
"""

from typing import Any

import numpy as np
import torch

from janus_moe.kernels.cpu.jit import helper


def rotate_and_cache_fused(
    qkv: torch.Tensor,
    norm: torch.Tensor | None,
    eps: float,
    rotation: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> torch.Tensor:
    """Contract of `rotate_and_cache` for contiguous float32 CPU tensors."""
    tokens, all_heads, head_dim = qkv.shape
    kv_heads = keys.shape[2]
    query = torch.empty(tokens, all_heads - 2 * kv_heads, head_dim)
    _run(
        qkv.numpy(),
        np.empty((0, head_dim), np.float32) if norm is None else norm.numpy(),
        norm is not None,
        np.float32(eps),
        torch.view_as_real(rotation).numpy(),
        keys.numpy(),
        values.numpy(),
        slot_mapping.numpy(),
        query.numpy(),
    )
    return query


@helper
def _run(
    qkv: Any, norm: Any, has_norm: bool, eps: Any, rotation: Any, keys: Any, values: Any,
    slots: Any, query: Any,
) -> None:  # fmt: skip
    tokens, heads, head_dim = query.shape
    block_size, kv_heads = keys.shape[1:3]
    for token in range(tokens):
        block, offset = slots[token] // block_size, slots[token] % block_size
        for head in range(heads + kv_heads):
            x = qkv[token, head]
            out = query[token, head] if head < heads else keys[block, offset, head - heads]
            scale = _inverse_rms(x, eps) if has_norm else np.float32(1)
            for i in range(0, head_dim, 2):
                a, b = x[i] * scale, x[i + 1] * scale
                if has_norm:
                    a, b = a * norm[head, i], b * norm[head, i + 1]
                cos, sin = rotation[token, 0, i // 2, 0], rotation[token, 0, i // 2, 1]
                out[i] = a * cos - b * sin
                out[i + 1] = a * sin + b * cos
        for head in range(kv_heads):
            for i in range(head_dim):
                values[block, offset, head, i] = qkv[token, heads + kv_heads + head, i]


@helper
def _inverse_rms(x: Any, eps: Any) -> Any:
    total = np.float32(0)
    for value in x:
        total += value * value
    return np.float32(1) / np.sqrt(total / np.float32(x.size) + eps)
