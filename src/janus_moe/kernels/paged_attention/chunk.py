"""CPU attention of one sequence's chunk of new tokens, with the bits of `streaming`.

Units of (tile of query tokens, key/value head): the keys of a range are read once for all query
heads of a tile. Scores, softmax, mix and merge are those of `streaming`, in its order; keys that a
token does not see yet have weight 0. A token's result thus does not depend on how a prompt is cut.
"""

from typing import Any

import numba
import numpy as np
import torch

from janus_moe.kernels.cpu.arrays import elements, floats
from janus_moe.kernels.cpu.jit import helper, kernel, num_workers, parallel_region
from janus_moe.kernels.cpu.rows import SUMS_SIZE, new_counters
from janus_moe.kernels.cpu.tiles import claim, out_of_line, pointer
from janus_moe.kernels.paged_attention.streaming import (
    RANGE_KEYS,
    merge_ranges,
    mix_values,
    score_keys,
    softmax,
)

TILE_COLUMNS = 96  # query heads that share a read of the keys


def attend_chunk_streaming(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    table: torch.Tensor,
    context: int,
    scale: float,
    value_dim: int,
) -> torch.Tensor:
    """[queries, heads, key_dim] -> [queries, heads, value_dim] float32 for one sequence.

    The chunk's last query sees all `context` keys.
    """
    out = torch.empty((*query.shape[:2], value_dim), dtype=torch.float32)
    arrays = (
        floats(query),
        elements(key_cache),
        elements(value_cache),
        table.contiguous().numpy(),
        context,
        np.float32(scale),
        out.numpy(),
    )
    with parallel_region():
        _run(*arrays, num_workers(query.numel() * context))
    return out


@kernel
def _run(
    query: Any, keys: Any, values: Any, table: Any, context: int, scale: Any, out: Any,
    workers: int,
) -> None:  # fmt: skip
    counter = new_counters(1)
    if workers == 1:
        _attend_tiles(query, keys, values, table, context, scale, out, counter)
        return
    for _ in numba.prange(workers):
        _attend_tiles(query, keys, values, table, context, scale, out, counter)


@helper
def _attend_tiles(
    query: Any, keys: Any, values: Any, table: Any, context: int, scale: Any, out: Any,
    counter: Any,
) -> None:  # fmt: skip
    """One worker: take (tile, key/value head) units until there are none left, the last first."""
    out_of_line()
    (queries, heads), kv_heads = query.shape[:2], keys.shape[2]
    group = heads // kv_heads
    tile = max(TILE_COLUMNS // group, 1)
    tiles = (queries + tile - 1) // tile
    ranges = (context + RANGE_KEYS - 1) // RANGE_KEYS
    sums = np.empty(SUMS_SIZE, np.float32)
    scores = np.empty((tile * group, RANGE_KEYS), np.float32)
    starts = np.empty(tile * group, np.int64)
    mixed = np.empty((ranges, tile * group, out.shape[2]), np.float32)
    peaks = np.empty((ranges, tile * group), np.float32)
    totals = np.empty((ranges, tile * group), np.float32)
    unit = claim(pointer(counter))
    while unit < tiles * kv_heads:
        first, kv_head = (tiles - 1 - unit // kv_heads) * tile, unit % kv_heads
        columns = min(tile, queries - first) * group
        for c in range(columns):
            row = (first + c // group) * heads + kv_head * group + c % group
            starts[c] = row * query.shape[2]
        visible = context - queries + first + 1  # of the tile's first token
        _attend_ranges(
            query, keys, values, table, kv_head, visible, group, scale, starts[:columns],
            scores[:columns], peaks, totals, mixed, sums,
        )  # fmt: skip
        for c in range(columns):
            n = (visible + c // group + RANGE_KEYS - 1) // RANGE_KEYS
            merge_ranges(
                peaks[:n, c], totals[:n, c], mixed[:n, c],
                out[first + c // group, kv_head * group + c % group],
            )  # fmt: skip
        unit = claim(pointer(counter))


@helper
def _attend_ranges(
    query: Any, keys: Any, values: Any, table: Any, kv_head: int, visible: int, group: int,
    scale: Any, starts: Any, scores: Any, peaks: Any, totals: Any, mixed: Any, sums: Any,
) -> None:  # fmt: skip
    """Softmax maximum and sum and the mix of every range of keys, for all columns of a tile."""
    columns = starts.size
    last = visible + (columns - 1) // group
    for begin in range(0, last, RANGE_KEYS):
        part, end = begin // RANGE_KEYS, min(begin + RANGE_KEYS, last)
        score_keys(query, keys, table, kv_head, begin, end, starts, scores, sums)
        for c in range(columns):
            n = min(max(visible + c // group - begin, 0), end - begin)
            if n > 0:
                peaks[part, c], totals[part, c] = softmax(scores[c, :n], scale, sums)
            for key in range(n, end - begin):
                scores[c, key] = np.float32(0)
        mix_values(values, table, kv_head, begin, end, scores, mixed[part])
