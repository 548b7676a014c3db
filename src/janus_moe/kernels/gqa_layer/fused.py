"""CPU kernel of a whole attention half for decode batches: one call instead of eight.

A decode step of a few tokens spends as long on starting operations as in them, because between two
layers the weights of all others have passed through the caches. Here the threads meet between the
phases and the interpreter is left alone. The phases are those of the kernels that they come from,
so every number has the bits of the operations one by one, and of the same tokens in a chunk.
"""

from typing import Any

import numba
import numpy as np
import torch

from janus_moe.kernels.cpu.jit import at_most, helper, kernel, num_workers, parallel_region
from janus_moe.kernels.cpu.rows import new_counters
from janus_moe.kernels.gqa_layer.tensors import GqaTensors
from janus_moe.kernels.linear.streaming import project_units
from janus_moe.kernels.paged_attention import AttentionBatch
from janus_moe.kernels.paged_attention.streaming import attend_units, first_ranges, merge_units
from janus_moe.kernels.rms_norm.streaming import normalise
from janus_moe.kernels.rotate_and_cache.fused import rotate_units

_NOTHING = np.empty(0, np.float32)
_NO_NORM = np.empty((0, 0), np.float32)


def gqa_layer_fused(
    hidden: torch.Tensor,
    weights: GqaTensors,
    rotation: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slot_mapping: torch.Tensor,
    batch: AttentionBatch,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Contract of `gqa_layer` for contiguous float32 CPU tensors, one token of each sequence."""
    after, normed = torch.empty_like(hidden), torch.empty_like(hidden)
    products = hidden.shape[0] * (weights.qkv.numel() + weights.o.numel())
    qk_norm = weights.qk_norm
    arrays = (
        hidden.numpy(),
        weights.input_norm.numpy(),
        weights.qkv.numpy(),
        _NOTHING if weights.qkv_bias is None else weights.qkv_bias.numpy(),
        _NO_NORM if qk_norm is None else qk_norm.numpy(),
        np.float32(weights.eps),
        torch.view_as_real(rotation).numpy(),
        keys.numpy(),
        values.numpy(),
        slot_mapping.numpy(),
        batch.block_tables.numpy(),
        batch.context_lens.numpy(),
        np.float32(weights.scale),
        weights.o.numpy(),
        _NOTHING if weights.o_bias is None else weights.o_bias.numpy(),
        weights.output_norm.numpy(),
        after.numpy(),
        normed.numpy(),
    )
    workers = num_workers(products)
    with parallel_region(), at_most(workers):
        _run(*arrays, workers)
    return after, normed


@kernel
def _run(
    hidden: Any, input_norm: Any, qkv_weight: Any, qkv_bias: Any, qk_norm: Any, eps: Any,
    rotation: Any, keys: Any, values: Any, slots: Any, tables: Any, visible: Any, scale: Any,
    o_weight: Any, o_bias: Any, output_norm: Any, after: Any, normed: Any, workers: int,
) -> None:  # fmt: skip
    tokens = hidden.shape[0]
    heads, head_dim = o_weight.shape[1] // keys.shape[3], keys.shape[3]
    counters = new_counters(5)
    rows = np.empty((tokens, hidden.shape[1]), np.float32)
    normalise(hidden, input_norm, eps, rows)
    qkv = np.empty((tokens, qkv_weight.shape[0]), np.float32)
    for _ in numba.prange(workers):
        project_units(rows, qkv_weight, qkv, counters, workers)
    _add_bias(qkv, qkv_bias)
    split = qkv.reshape((tokens, qkv.shape[1] // head_dim, head_dim))
    query = np.empty((tokens, heads, head_dim), np.float32)
    for _ in numba.prange(workers):
        rotate_units(split, qk_norm, eps, rotation, keys, values, slots, query, counters[8:])
    starts = first_ranges(visible)
    mixed = np.empty((starts[tokens], heads, head_dim), np.float32)
    peaks = np.empty((starts[tokens], heads), np.float32)
    totals = np.empty((starts[tokens], heads), np.float32)
    for _ in numba.prange(workers):
        attend_units(
            query, keys, values, tables, visible, scale, starts, peaks, totals, mixed,
            counters[16:],
        )  # fmt: skip
    for _ in numba.prange(workers):
        merge_units(starts, peaks, totals, mixed, query, counters[24:])
    for _ in numba.prange(workers):
        project_units(
            query.reshape((tokens, o_weight.shape[1])), o_weight, after, counters[32:], workers
        )
    _add_bias(after, o_bias)
    _add(after, hidden)
    normalise(after, output_norm, eps, normed)


@helper
def _add_bias(rows: Any, bias: Any) -> None:
    if bias.size > 0:
        for token in range(rows.shape[0]):
            for i in range(rows.shape[1]):
                rows[token, i] += bias[i]


@helper
def _add(rows: Any, others: Any) -> None:
    for token in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            rows[token, i] += others[token, i]
