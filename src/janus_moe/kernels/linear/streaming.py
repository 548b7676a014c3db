"""CPU kernel for few tokens: streams every weight row once against all of them.

A token's result is the same bits for any number of threads and any other tokens in the batch.
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
    """One worker: take blocks of rows until there are none left."""
    out_of_line()
    rows = weight.shape[0]
    starts = row_starts(x.shape[0], x.shape[1])
    block = block_rows(rows, workers)
    blocks = (rows + block - 1) // block
    sums = np.empty(SUMS_SIZE, np.float32)
    unit = claim(pointer(counter))
    while unit < blocks:
        begin = unit * block
        _project(x, weight, starts, begin, min(begin + block, rows), out, sums)
        unit = claim(pointer(counter))


@helper
def _project(x: Any, weight: Any, starts: Any, begin: int, end: int, out: Any, sums: Any) -> None:
    """out[token, row] = weight[row] . x[token] for rows begin..end.

    Few tokens wait for memory, which is read fastest one row after another; for more of them,
    panels of rows make most of every load of a token.
    """
    row = begin
    if x.shape[0] > ROW_TOKENS:
        while row + panel_rows() <= end:
            _panel(x, weight, starts, row, out, sums)
            row += panel_rows()
    while row < end:
        _row(x, weight, starts, row, out, sums)
        row += 1


@helper
def _row(x: Any, weight: Any, starts: Any, row: int, out: Any, sums: Any) -> None:
    tokens, length = x.shape
    ahead = AHEAD
    for token in range(0, tokens, ROW_COLUMNS):
        n = min(ROW_COLUMNS, tokens - token)
        dot_row(
            pointer(weight), row * length, ahead, pointer(x), pointer(starts[token:]), n, length,
            pointer(sums),
        )  # fmt: skip
        ahead = 0
        for c in range(n):
            out[token + c, row] = sums[c]


@helper
def _panel(x: Any, weight: Any, starts: Any, row: int, out: Any, sums: Any) -> None:
    tokens, length = x.shape
    for token in range(0, tokens, 3):
        n = min(3, tokens - token)
        dot_panel(
            pointer(weight), row * length, pointer(x), pointer(starts[token:]), n, length,
            pointer(sums),
        )  # fmt: skip
        for r in range(panel_rows()):
            for c in range(n):
                out[token + c, row + r] = sums[r * n + c]
