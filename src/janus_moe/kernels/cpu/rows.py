"""Four rows of a matrix times any few columns: picks the register tile."""

from typing import Any

import numpy as np

from janus_moe.kernels.cpu.jit import helper
from janus_moe.kernels.cpu.tiles import dot_tile

SUMS_SIZE = 32  # float32 room that a tile's results need


@helper
def dot_rows(
    matrix: Any, first: int, second: int, stride: int, ahead: int, x: Any, starts: Any,
    columns: int, length: int, sums: Any,
) -> None:  # fmt: skip
    """Rows first, first + stride, second, second + stride times 1..6 columns, see `dot_tile`."""
    if columns == 6:
        dot_tile(6, matrix, first, second, stride, ahead, x, starts, length, sums)
    elif columns == 5:
        dot_tile(5, matrix, first, second, stride, ahead, x, starts, length, sums)
    elif columns == 4:
        dot_tile(4, matrix, first, second, stride, ahead, x, starts, length, sums)
    elif columns == 3:
        dot_tile(3, matrix, first, second, stride, ahead, x, starts, length, sums)
    elif columns == 2:
        dot_tile(2, matrix, first, second, stride, ahead, x, starts, length, sums)
    else:
        dot_tile(1, matrix, first, second, stride, ahead, x, starts, length, sums)


@helper
def block_rows(rows: int, workers: int) -> int:
    """Rows of a unit of work: a multiple of 4, at most 64, about 4 units for each worker."""
    return min(max(rows // (4 * workers) // 4 * 4, 4), 64)


@helper
def row_starts(rows: int, length: int) -> Any:
    """Element offset of every row of a contiguous [rows, length] array."""
    starts = np.empty(rows, np.int64)
    for row in range(rows):
        starts[row] = row * length
    return starts


@helper
def new_counters() -> Any:
    """Shared unit counters of a kernel's two phases, a cache line apart (see `claim`)."""
    return np.zeros(16, np.int64)
