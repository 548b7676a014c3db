"""CPU attention of single query tokens, straight from the paged cache.

Two parallel phases. One: units of (query token, key/value head, range of RANGE_KEYS keys), each
with its own softmax maximum and sum; a single long sequence still feeds every thread. Two: merge
a query head's ranges, in order. Ranges do not depend on the number of threads, nor does any bit
of the result.
"""

from typing import Any

import numba
import numpy as np
import torch

from janus_moe.kernels.cpu.arrays import elements, floats
from janus_moe.kernels.cpu.jit import helper, kernel, num_workers, parallel_region
from janus_moe.kernels.cpu.math import exp
from janus_moe.kernels.cpu.mix import mix_tile
from janus_moe.kernels.cpu.rows import SUMS_SIZE, dot_row, dot_rows, new_counters
from janus_moe.kernels.cpu.tiles import claim, max_columns, out_of_line, pointer

RANGE_KEYS = 256  # keys of a unit
LANES = 16


def attend_streaming(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    tables: torch.Tensor,
    visible: torch.Tensor,
    scale: float,
    value_dim: int,
) -> torch.Tensor:
    """Attention of query tokens that each have their own block table and key count.

    query: [tokens, heads, key_dim].
    key_cache, value_cache: as `paged_attention` takes them, contiguous and of one dtype.
    tables: [tokens, max_blocks] int32, cache blocks of each token's sequence.
    visible: [tokens] int32, keys that a token sees, at least 1.

    Returns [tokens, heads, value_dim] float32.
    """
    out = torch.empty((*query.shape[:2], value_dim), dtype=torch.float32)
    arrays = (
        floats(query),
        elements(key_cache),
        elements(value_cache),
        tables.contiguous().numpy(),
        visible.contiguous().numpy(),
        np.float32(scale),
        out.numpy(),
    )
    products = query.shape[1] * (query.shape[2] + value_dim)  # for each visible key
    workers = num_workers(int(visible.sum()) * products)
    with parallel_region():
        _run(*arrays, workers)
    return out


@kernel
def _run(
    query: Any, keys: Any, values: Any, tables: Any, visible: Any, scale: Any, out: Any,
    workers: int,
) -> None:  # fmt: skip
    heads, value_dim = out.shape[1:]
    first_range = first_ranges(visible)
    ranges = first_range[visible.size]
    mixed = np.empty((ranges, heads, value_dim), np.float32)
    peaks = np.empty((ranges, heads), np.float32)
    totals = np.empty((ranges, heads), np.float32)
    counter = new_counters(2)
    if workers == 1:
        attend_units(
            query, keys, values, tables, visible, scale, first_range, peaks, totals, mixed, counter
        )
        merge_units(first_range, peaks, totals, mixed, out, counter[8:])
        return
    for _ in numba.prange(workers):
        attend_units(
            query, keys, values, tables, visible, scale, first_range, peaks, totals, mixed, counter
        )
    for _ in numba.prange(workers):
        merge_units(first_range, peaks, totals, mixed, out, counter[8:])


@helper
def attend_units(
    query: Any, keys: Any, values: Any, tables: Any, visible: Any, scale: Any, first_range: Any,
    peaks: Any, totals: Any, mixed: Any, counter: Any,
) -> None:  # fmt: skip
    """One worker of phase one: take (range, key/value head) units until there are none left."""
    out_of_line()
    heads, key_dim = query.shape[1:]
    kv_heads = keys.shape[2]
    group = heads // kv_heads
    sums = np.empty(SUMS_SIZE, np.float32)
    scores = np.empty((group, RANGE_KEYS), np.float32)
    starts = np.empty(group, np.int64)
    token = 0
    unit = claim(pointer(counter))
    while unit < peaks.shape[0] * kv_heads:
        part, kv_head = unit // kv_heads, unit % kv_heads
        while first_range[token + 1] <= part:  # units come in ascending order
            token += 1
        begin = (part - first_range[token]) * RANGE_KEYS
        end = min(begin + RANGE_KEYS, visible[token])
        head = kv_head * group
        for h in range(group):
            starts[h] = (token * heads + head + h) * key_dim
        score_keys(query, keys, tables[token], kv_head, begin, end, starts, scores, sums)
        for h in range(group):
            peaks[part, head + h], totals[part, head + h] = softmax(
                scores[h, : end - begin], scale, sums
            )
        mix_values(values, tables[token], kv_head, begin, end, scores, mixed[part, head:])
        unit = claim(pointer(counter))


@helper
def merge_units(
    first_range: Any, peaks: Any, totals: Any, mixed: Any, out: Any, counter: Any
) -> None:
    """One worker of phase two: merge the ranges of a (token, head) until there are none left."""
    out_of_line()
    tokens, heads = out.shape[:2]
    unit = claim(pointer(counter))
    while unit < tokens * heads:
        token, head = unit // heads, unit % heads
        begin, end = first_range[token], first_range[token + 1]
        merge_ranges(
            peaks[begin:end, head], totals[begin:end, head], mixed[begin:end, head],
            out[token, head],
        )  # fmt: skip
        unit = claim(pointer(counter))


@helper
def first_ranges(visible: Any) -> Any:
    """Ranges before each token's first one: [tokens + 1]."""
    first = np.zeros(visible.size + 1, np.int64)
    for token in range(visible.size):
        first[token + 1] = first[token] + (visible[token] + RANGE_KEYS - 1) // RANGE_KEYS
    return first


@helper
def _key_scores(
    query: Any, keys: Any, start: int, step: int, ahead: int, starts: Any, heads: int, rows: int,
    sums: Any,
) -> None:  # fmt: skip
    """sums[r * heads + h] = query head h . key r, for up to four keys of one block."""
    length = keys.shape[3]
    if rows == 4:
        dot_rows(
            pointer(keys), start, step, ahead, pointer(query), pointer(starts), heads, length,
            pointer(sums),
        )  # fmt: skip
        return
    for r in range(rows):
        dot_row(
            pointer(keys), start + r * step, ahead, pointer(query), pointer(starts), heads, length,
            pointer(sums[r * heads:]),
        )  # fmt: skip


@helper
def score_keys(
    query: Any, keys: Any, table: Any, kv_head: int, begin: int, end: int, starts: Any,
    scores: Any, sums: Any,
) -> None:  # fmt: skip
    """scores[h, key - begin] = query head h . key, for keys begin..end of one sequence."""
    block_size, kv_heads, key_dim = keys.shape[1:]
    step = kv_heads * key_dim
    group = starts.size
    key = begin
    while key < end:
        offset = key % block_size
        rows = min(4, end - key, block_size - offset)
        start = (table[key // block_size] * block_size + offset) * step + kv_head * key_dim
        ahead = rows * step
        if offset + rows == block_size:
            blocks = _next_block(table, key // block_size, (end - 1) // block_size)
            ahead = (blocks * block_size - offset) * step
        for head in range(0, group, max_columns()):
            n = min(max_columns(), group - head)
            _key_scores(query, keys, start, step, ahead, starts[head:], n, rows, sums)
            ahead = 0
            for r in range(rows):
                for c in range(n):
                    scores[head + c, key - begin + r] = sums[r * n + c]
        key += rows


@helper
def softmax(scores: Any, scale: Any, sums: Any) -> Any:
    """Replace scores by exp(scale * (score - peak)); returns (scale * peak, their sum).

    Maximum and sum are taken in LANES parts, whatever registers the processor has.
    """
    whole = scores.size // LANES * LANES
    for lane in range(LANES):
        sums[lane] = scores[0]
    for i in range(0, whole, LANES):
        for lane in range(LANES):
            sums[lane] = max(sums[lane], scores[i + lane])
    peak = sums[0]
    for lane in range(1, LANES):
        peak = max(peak, sums[lane])
    for i in range(whole, scores.size):
        peak = max(peak, scores[i])
    for i in range(scores.size):
        scores[i] = exp((scores[i] - peak) * scale)
    for lane in range(LANES):
        sums[lane] = np.float32(0)
    for i in range(0, whole, LANES):
        for lane in range(LANES):
            sums[lane] += scores[i + lane]
    total = np.float32(0)
    for lane in range(LANES):
        total += sums[lane]
    for i in range(whole, scores.size):
        total += scores[i]
    return peak * scale, total


@helper
def mix_values(
    values: Any, table: Any, kv_head: int, begin: int, end: int, weights: Any, out: Any
) -> None:
    """out[h] = sum over keys begin..end of weights[h, key - begin] * value row."""
    block_size, kv_heads, value_width = values.shape[1:]
    step = kv_heads * value_width
    group, dim = weights.shape[0], out.shape[1]
    for head in range(group):
        for i in range(dim):
            out[head, i] = np.float32(0)
    key = begin
    while key < end:
        offset = key % block_size
        rows = min(end - key, block_size - offset)
        start = (table[key // block_size] * block_size + offset) * step + kv_head * value_width
        ahead = _next_block(table, key // block_size, (end - 1) // block_size) * block_size * step
        head = 0
        while head < group:
            heads = 4 if group - head >= 4 else min(2, group - head)
            _mix_heads(
                heads, values, start, step, rows, ahead,
                weights[head:, key - begin :], weights.shape[1], out[head:], dim,
            )  # fmt: skip
            ahead = 0
            head += heads
        key += rows


@helper
def _next_block(table: Any, index: int, last: int) -> Any:
    """Blocks from a sequence's block to its following one, 0 at the last."""
    return np.int64(table[min(index + 1, last)]) - np.int64(table[index])


@helper
def _mix_heads(
    heads: int, values: Any, start: int, step: int, rows: int, ahead: int, weights: Any,
    weight_stride: int, out: Any, dim: int,
) -> None:  # fmt: skip
    """One, two or four heads of `mix_values` over consecutive rows, see `mix_tile`."""
    v, w, o = pointer(values), pointer(weights), pointer(out)
    if heads == 4:
        mix_tile(4, v, start, step, rows, ahead, w, weight_stride, o, dim)
    elif heads == 2:
        mix_tile(2, v, start, step, rows, ahead, w, weight_stride, o, dim)
    else:
        mix_tile(1, v, start, step, rows, ahead, w, weight_stride, o, dim)


@helper
def merge_ranges(peaks: Any, totals: Any, mixed: Any, out: Any) -> None:
    """Softmax-weighted mean of the ranges of one head: [ranges], [ranges], [ranges, dim]."""
    peak = peaks[0]
    for r in range(1, peaks.size):
        peak = max(peak, peaks[r])
    total = np.float32(0)
    for i in range(out.size):
        out[i] = np.float32(0)
    for r in range(peaks.size):
        weight = exp(peaks[r] - peak)
        total += weight * totals[r]
        for i in range(out.size):
            out[i] += weight * mixed[r, i]
    for i in range(out.size):
        out[i] /= total
