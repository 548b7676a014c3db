"""The obvious version, one torch operation after another."""

import torch
import torch.nn.functional as F

from janus_moe.kernels.paged_attention import write_kv


def rotate_and_cache_reference(
    qkv: torch.Tensor,
    norm: torch.Tensor | None,
    eps: float,
    rotation: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> torch.Tensor:
    """Contract of `rotate_and_cache`."""
    kv_heads, head_dim = keys.shape[2:]
    heads = qkv.shape[1] - 2 * kv_heads
    qk, value = torch.split(qkv, [heads + kv_heads, kv_heads], dim=1)
    if norm is not None:
        qk = F.rms_norm(qk, (head_dim,), None, eps).mul_(norm)
    qk = rotate_(qk, rotation).to(qkv.dtype)
    write_kv(keys, qk[:, heads:], slot_mapping)
    write_kv(values, value, slot_mapping)
    return qk[:, :heads]


def rotate_(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Rotates adjacent pairs; may overwrite `x`. Returns [tokens, heads, rotary_dim] float32.

    x: [tokens, heads, rotary_dim]; rotation: [tokens, 1, rotary_dim / 2] complex64.
    """
    x = x.float()
    if x.storage_offset() % 2 or x.stride(0) % 2:  # complex numbers lie at even places
        x = x.contiguous().clone()
    tokens, heads, dim = x.shape
    torch.view_as_complex(x.view(tokens, heads, dim // 2, 2)).mul_(rotation)
    return x
