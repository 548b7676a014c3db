"""CPU kernel that does all of it in one pass over the projections.

A decode step spends more time on starting seven small operations than in them; few tokens take one
thread. A token's result does not depend on the others.
"""

from typing import Any

import numba
import numpy as np
import torch

from janus_moe.kernels.cpu.jit import helper, kernel, num_workers, parallel_region
from janus_moe.kernels.cpu.rows import SUMS_SIZE, new_counters, sum_of_squares
from janus_moe.kernels.cpu.tiles import claim, out_of_line, pointer


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
    arrays = (
        qkv.numpy(),
        np.empty((0, head_dim), np.float32) if norm is None else norm.numpy(),
        np.float32(eps),
        torch.view_as_real(rotation).numpy(),
        keys.numpy(),
        values.numpy(),
        slot_mapping.numpy(),
        query.numpy(),
    )
    with parallel_region():
        _run(*arrays, num_workers(qkv.numel()))
    return query


@kernel
def _run(
    qkv: Any, norm: Any, eps: Any, rotation: Any, keys: Any, values: Any, slots: Any, query: Any,
    workers: int,
) -> None:  # fmt: skip
    counter = new_counters(1)
    if workers == 1:
        rotate_units(qkv, norm, eps, rotation, keys, values, slots, query, counter)
        return
    for _ in numba.prange(workers):
        rotate_units(qkv, norm, eps, rotation, keys, values, slots, query, counter)


@helper
def rotate_units(
    qkv: Any, norm: Any, eps: Any, rotation: Any, keys: Any, values: Any, slots: Any, query: Any,
    counter: Any,
) -> None:  # fmt: skip
    """One worker: take tokens until there are none left."""
    out_of_line()
    token = claim(pointer(counter))
    while token < query.shape[0]:
        rotate_token(qkv, norm, eps, rotation, keys, values, slots, query, token)
        token = claim(pointer(counter))


@helper
def rotate_token(
    qkv: Any, norm: Any, eps: Any, rotation: Any, keys: Any, values: Any, slots: Any, query: Any,
    token: int,
) -> None:  # fmt: skip
    """All of one token. norm: of no size for none."""
    heads, head_dim = query.shape[1:]
    block_size, kv_heads = keys.shape[1:3]
    block, offset = slots[token] // block_size, slots[token] % block_size
    sums = np.empty(SUMS_SIZE, np.float32)
    for head in range(heads + kv_heads):
        x = qkv[token, head]
        if norm.size > 0:
            start = (token * qkv.shape[1] + head) * head_dim
            mean = sum_of_squares(qkv, start, head_dim, sums) / np.float32(head_dim)
            scale = np.float32(1) / np.sqrt(mean + eps)
            for i in range(head_dim):
                x[i] *= scale * norm[head, i]
        out = query[token, head] if head < heads else keys[block, offset, head - heads]
        _rotate(x, rotation[token, 0], out)
    for head in range(kv_heads):
        for i in range(head_dim):
            values[block, offset, head, i] = qkv[token, heads + kv_heads + head, i]


@helper
def _rotate(x: Any, rotation: Any, out: Any) -> None:
    """x, out: [head_dim]; rotation: [head_dim / 2, 2], cosine and sine."""
    for pair in range(rotation.shape[0]):
        a, b = x[2 * pair], x[2 * pair + 1]
        cos, sin = rotation[pair, 0], rotation[pair, 1]
        out[2 * pair] = a * cos - b * sin
        out[2 * pair + 1] = a * sin + b * cos
