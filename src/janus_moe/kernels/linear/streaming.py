"""CPU kernel: streams every weight row against tiles of tokens that stay in the cache meanwhile.

A token's result is the same bits for any number of threads and any other tokens in the batch: each
dot product has one order, whichever register tile computes it: pieces of DOT_LENGTH, ascending.
"""

from typing import Any

import numba
import numpy as np
import torch

from janus_moe.kernels.cpu.arrays import elements, floats
from janus_moe.kernels.cpu.jit import helper, kernel, num_workers, parallel_region
from janus_moe.kernels.cpu.rows import (
    AHEAD,
    ROW_COLUMNS,
    SUMS_SIZE,
    block_rows,
    dot_panel,
    dot_row,
    new_counters,
    row_starts,
)
from janus_moe.kernels.cpu.tiles import claim, out_of_line, panel_rows, pointer

ROW_TOKENS = 4  # up to so many tokens, rows are streamed one by one
DOT_LENGTH = 1024  # a panel of so long pieces of rows fits the first-level cache
TILE_INPUTS = 1 << 18  # 1 MiB of tokens stays in the second-level cache


def linear_streaming(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Contract of `linear` for CPU tensors; `weight` is contiguous."""
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=torch.float32)
    workers = num_workers(x.shape[0] * weight.numel())
    with parallel_region():
        _run(floats(x), elements(weight), out.numpy(), workers)
    if bias is not None:
        out += bias
    return out if x.dtype == torch.float32 else out.to(x.dtype)


@kernel
def _run(x: Any, weight: Any, out: Any, workers: int) -> None:
    counter = new_counters(1)
    if workers == 1:
        project_units(x, weight, out, counter, workers)
        return
    for _ in numba.prange(workers):
        project_units(x, weight, out, counter, workers)


@helper
def project_units(x: Any, weight: Any, out: Any, counter: Any, workers: int) -> None:
    """One worker: take (tile of tokens, block of rows) units until there are none left."""
    out_of_line()
    (tokens, length), rows = x.shape, weight.shape[0]
    starts = row_starts(tokens, length)
    tile = max(TILE_INPUTS // length // 12 * 12, 12)
    tiles = (tokens + tile - 1) // tile
    block = block_rows(rows, workers)
    blocks = (rows + block - 1) // block
    sums = np.empty(SUMS_SIZE, np.float32)
    unit = claim(pointer(counter))
    while unit < tiles * blocks:
        first, begin = unit // blocks * tile, unit % blocks * block
        last, end = min(first + tile, tokens), min(begin + block, rows)
        _project(x, weight, starts, first, last, begin, end, out, sums)
        unit = claim(pointer(counter))


def head_linear_streaming(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Contract of `head_linear` for float32 CPU tensors.

    weight: [heads, out, in], contiguous.
    """
    out = torch.empty(*x.shape[:2], weight.shape[1])
    workers = num_workers(x.shape[0] * weight.numel())
    with parallel_region():
        _run_heads(floats(x), elements(weight), out.numpy(), workers)
    return out


@kernel
def _run_heads(x: Any, weight: Any, out: Any, workers: int) -> None:
    counter = new_counters(1)
    if workers == 1:
        _project_heads(x, weight, out, counter)
        return
    for _ in numba.prange(workers):
        _project_heads(x, weight, out, counter)


@helper
def _project_heads(x: Any, weight: Any, out: Any, counter: Any) -> None:
    """One worker: take heads until there are none left."""
    out_of_line()
    tokens, heads, length = x.shape
    rows = x.reshape((tokens * heads, length))
    starts = np.empty(tokens, np.int64)
    sums = np.empty(SUMS_SIZE, np.float32)
    head = claim(pointer(counter))
    while head < heads:
        for token in range(tokens):
            starts[token] = (token * heads + head) * length
        own = out[:, head]
        _project(rows, weight[head], starts, 0, tokens, 0, weight.shape[1], own, sums)
        head = claim(pointer(counter))


@helper
def _project(
    x: Any, weight: Any, starts: Any, first: int, last: int, begin: int, end: int, out: Any,
    sums: Any,
) -> None:  # fmt: skip
    """out[token, row] = weight[row] . x[token] for tokens first..last and rows begin..end.

    Few tokens wait for memory, which is read fastest one row after another; for more of them,
    panels of rows make most of every load of a token.
    """
    row = begin
    if last - first > ROW_TOKENS:
        while row + panel_rows() <= end:
            _panel(x, weight, starts, first, last, row, out, sums)
            row += panel_rows()
    while row < end:
        _row(x, weight, starts, first, last, row, out, sums)
        row += 1


@helper
def _row(
    x: Any, weight: Any, starts: Any, first: int, last: int, row: int, out: Any, sums: Any
) -> None:
    length, flat = x.shape[1], x.reshape(-1)
    ahead = AHEAD
    for token in range(first, last, ROW_COLUMNS):
        n = min(ROW_COLUMNS, last - token)
        for k in range(0, length, DOT_LENGTH):
            dot_row(
                pointer(weight), row * length + k, ahead, pointer(flat[k:]),
                pointer(starts[token:]), n, min(DOT_LENGTH, length - k), pointer(sums),
            )  # fmt: skip
            for c in range(n):
                out[token + c, row] = sums[c] if k == 0 else out[token + c, row] + sums[c]
        ahead = 0


@helper
def _panel(
    x: Any, weight: Any, starts: Any, first: int, last: int, row: int, out: Any, sums: Any
) -> None:
    """`_row` for `panel_rows()` rows, of which a piece stays in the first-level cache."""
    length, flat = x.shape[1], x.reshape(-1)
    for k in range(0, length, DOT_LENGTH):
        size = min(DOT_LENGTH, length - k)
        for token in range(first, last, 3):
            n = min(3, last - token)
            dot_panel(
                pointer(weight), row * length + k, length, pointer(flat[k:]),
                pointer(starts[token:]), n, size, pointer(sums),
            )  # fmt: skip
            for r in range(panel_rows()):
                for c in range(n):
                    value = sums[r * n + c]
                    out[token + c, row + r] = value if k == 0 else out[token + c, row + r] + value
