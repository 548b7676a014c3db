"""Rows of a matrix times a few columns: picks the register tile."""

from typing import Any

import numpy as np

from janus_moe.kernels.cpu.jit import helper
from janus_moe.kernels.cpu.tiles import dot_tile, panel_rows, pointer

SUMS_SIZE = 48  # float32 room that a tile's results need
ROW_COLUMNS = 6
AHEAD = 2048  # elements from a row that is read to what is prefetched meanwhile


@helper
def dot_row(
    matrix: Any, start: int, ahead: int, x: Any, starts: Any, columns: int, length: int,
    sums: Any,
) -> None:  # fmt: skip
    """One row times 1..6 columns, see `dot_tile`."""
    if columns == 6:
        dot_tile(1, 6, matrix, start, length, ahead, x, starts, length, sums)
    elif columns == 5:
        dot_tile(1, 5, matrix, start, length, ahead, x, starts, length, sums)
    elif columns == 4:
        dot_tile(1, 4, matrix, start, length, ahead, x, starts, length, sums)
    elif columns == 3:
        dot_tile(1, 3, matrix, start, length, ahead, x, starts, length, sums)
    elif columns == 2:
        dot_tile(1, 2, matrix, start, length, ahead, x, starts, length, sums)
    else:
        dot_tile(1, 1, matrix, start, length, ahead, x, starts, length, sums)


@helper
def dot_rows(
    matrix: Any, start: int, stride: int, ahead: int, x: Any, starts: Any, columns: int,
    length: int, sums: Any,
) -> None:  # fmt: skip
    """Rows start, start + stride, ... of four times 1..6 columns, see `dot_tile`."""
    if columns == 6:
        dot_tile(4, 6, matrix, start, stride, ahead, x, starts, length, sums)
    elif columns == 5:
        dot_tile(4, 5, matrix, start, stride, ahead, x, starts, length, sums)
    elif columns == 4:
        dot_tile(4, 4, matrix, start, stride, ahead, x, starts, length, sums)
    elif columns == 3:
        dot_tile(4, 3, matrix, start, stride, ahead, x, starts, length, sums)
    elif columns == 2:
        dot_tile(4, 2, matrix, start, stride, ahead, x, starts, length, sums)
    else:
        dot_tile(4, 1, matrix, start, stride, ahead, x, starts, length, sums)


@helper
def dot_panel(
    matrix: Any, start: int, stride: int, x: Any, starts: Any, columns: int, length: int,
    sums: Any,
) -> None:  # fmt: skip
    """`panel_rows()` rows, `stride` apart, times 1..3 columns, without prefetching."""
    if panel_rows() == 8:
        if columns == 3:
            dot_tile(8, 3, matrix, start, stride, 0, x, starts, length, sums)
        elif columns == 2:
            dot_tile(8, 2, matrix, start, stride, 0, x, starts, length, sums)
        else:
            dot_tile(8, 1, matrix, start, stride, 0, x, starts, length, sums)
    elif columns == 3:
        dot_tile(4, 3, matrix, start, stride, 0, x, starts, length, sums)
    elif columns == 2:
        dot_tile(4, 2, matrix, start, stride, 0, x, starts, length, sums)
    else:
        dot_tile(4, 1, matrix, start, stride, 0, x, starts, length, sums)


@helper
def block_rows(rows: int, workers: int) -> int:
    """Rows of a unit of work: a multiple of 8, at most 64, about 4 units for each worker."""
    return min(max(rows // (4 * workers) // 8 * 8, 8), 64)


@helper
def row_starts(rows: int, length: int) -> Any:
    """Element offset of every row of a contiguous [rows, length] array."""
    starts = np.empty(rows, np.int64)
    for row in range(rows):
        starts[row] = row * length
    return starts


@helper
def sum_of_squares(x: Any, start: int, length: int, sums: Any) -> Any:
    """Of the elements start..start + length of x."""
    offset = np.full(1, start)
    dot_row(pointer(x), start, 0, pointer(x), pointer(offset), 1, length, pointer(sums))
    return sums[0]


@helper
def new_counters(phases: int) -> Any:
    """Shared unit counters of a kernel's phases, a cache line apart: counters[8 * phase:] (see
    `claim`)."""
    return np.zeros(8 * phases, np.int64)
