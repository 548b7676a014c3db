"""CPU kernel that streams every activated weight row once against all of its tokens.

Two parallel phases. A: activations of all (token, k) pairs, units of (slot, block of rows). B:
outputs, units of a block of output rows over all slots, so that no two threads write the same
element. Threads take units from a shared counter, which balances uneven slots and noisy cores.

Each dot product has one order, independent of the number of threads and of the other tokens in the
batch. Sums over experts are taken in float64, where sums of so few float32 numbers are exact as
long as their exponents differ by less than some 26 bits. A token's result is thus the same bits in
every batch, and whichever slots its experts have.
"""

from typing import Any

import numba
import numpy as np
import torch

from janus_moe.kernels.cpu.arrays import elements, floats
from janus_moe.kernels.cpu.jit import helper, kernel, num_workers, parallel_region
from janus_moe.kernels.cpu.math import silu
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
from janus_moe.kernels.linear.streaming import TILE_INPUTS

PAIRS_AT_ONCE = 96  # whose products of a block of rows stay in the caches
MANY_PAIRS = 16  # of a slot, beyond which activations weigh more than weights


def grouped_experts_streaming(
    hidden: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    slot_ids: torch.Tensor,
    weights: torch.Tensor,
    sums: torch.dtype,
) -> torch.Tensor:
    """Contract of `grouped_experts` for contiguous CPU tensors."""
    out = torch.empty(hidden.shape, dtype=sums)
    arrays = (
        floats(hidden),
        elements(gate_up),
        elements(down),
        slot_ids.contiguous().numpy(),
        floats(weights),
        out.numpy(),
    )
    workers = num_workers(slot_ids.numel() * 3 * down.shape[1] * down.shape[2])
    with parallel_region():
        _run(*arrays, workers)
    return out


@kernel
def _run(
    hidden: Any, gate_up: Any, down: Any, slot_ids: Any, weights: Any, out: Any, workers: int
) -> None:
    slots, double_width, in_size = gate_up.shape
    width = double_width // 2
    pairs, first_pair, active = _sort_by_slot(slot_ids.reshape(-1), slots)
    token_of, hidden_starts, pair_weights = _pair_data(pairs, weights, in_size)
    activation_starts = row_starts(pairs.size, width)
    gates = np.empty((pairs.size, width), np.float32)  # becomes the activations
    ups = np.empty((pairs.size, width), np.float32)
    counter = new_counters(2)
    if workers == 1:
        _activate_units(  # a literal 1 would be compiled as a type of its own
            hidden, gate_up, first_pair, active, hidden_starts, pair_weights, gates, ups, counter,
            workers,
        )  # fmt: skip
        _project_units(
            gates, down, first_pair, active, activation_starts, token_of, out, counter[8:], workers
        )
        return
    for _ in numba.prange(workers):
        _activate_units(
            hidden, gate_up, first_pair, active, hidden_starts, pair_weights, gates, ups, counter,
            workers,
        )  # fmt: skip
    for _ in numba.prange(workers):
        _project_units(
            gates, down, first_pair, active, activation_starts, token_of, out, counter[8:], workers
        )


@helper
def _activate_units(
    hidden: Any, gate_up: Any, first_pair: Any, active: Any, hidden_starts: Any,
    pair_weights: Any, gates: Any, ups: Any, counter: Any, workers: int,
) -> None:  # fmt: skip
    """One worker of phase A: take (slot, block of rows) units until there are none left."""
    out_of_line()
    width = gates.shape[1]
    block = block_rows(width * active.size, workers)
    blocks = (width + block - 1) // block
    sums = np.empty(SUMS_SIZE, np.float32)
    unit = claim(pointer(counter))
    while unit < blocks * active.size:
        slot = active[unit // blocks]
        begin = unit % blocks * block
        end = min(begin + block, width)
        first, last = first_pair[slot], first_pair[slot + 1]
        _gate_and_up(
            hidden, gate_up, slot, begin, end, first, last, hidden_starts, gates, ups, sums
        )
        _activate(gates, ups, pair_weights, begin, end, first, last)
        unit = claim(pointer(counter))


@helper
def _project_units(
    activations: Any, down: Any, first_pair: Any, active: Any, activation_starts: Any,
    token_of: Any, out: Any, counter: Any, workers: int,
) -> None:  # fmt: skip
    """One worker of phase B: take blocks of output rows until there are none left."""
    out_of_line()
    out_size = out.shape[1]
    block = block_rows(out_size, workers)
    if token_of.size > MANY_PAIRS * active.size:  # every block reads all activations again
        block = max(block, min(out_size // (4 * workers) // 8 * 8, 256))
    blocks = (out_size + block - 1) // block
    sums = np.empty(SUMS_SIZE, np.float32)
    parts = np.empty((PAIRS_AT_ONCE, block), np.float32)
    totals = np.empty((out.shape[0], block), np.float64)
    unit = claim(pointer(counter))
    while unit < blocks:
        begin = unit * block
        end = min(begin + block, out_size)
        _clear(totals)
        for i in range(active.size):
            slot, following = active[i], active[min(i + 1, active.size - 1)]
            _project(
                activations, down, slot, following, begin, end, first_pair[slot],
                first_pair[slot + 1], activation_starts, token_of, parts, totals, sums,
            )  # fmt: skip
        for token in range(out.shape[0]):
            own = out[token, begin:end]
            for i in range(own.size):
                own[i] = totals[token, i]
        unit = claim(pointer(counter))


@helper
def _sort_by_slot(slot_ids: Any, slots: int) -> Any:
    """Sort the pairs that have a slot by slot, then by position.

    Returns pairs [pairs], first_pair [slots + 1] and active, the slots that have any.
    """
    first = np.zeros(slots + 1, np.int64)
    for slot in slot_ids:
        if slot >= 0:
            first[slot + 1] += 1
    for slot in range(slots):
        first[slot + 1] += first[slot]
    cursor = np.empty(slots, np.int64)
    for slot in range(slots):
        cursor[slot] = first[slot]
    pairs = np.empty(first[slots], np.int64)
    for pair, slot in enumerate(slot_ids):
        if slot >= 0:
            pairs[cursor[slot]] = pair
            cursor[slot] += 1
    return pairs, first, _slots_with_pairs(first)


@helper
def _slots_with_pairs(first: Any) -> Any:
    active = np.empty(first.size - 1, np.int64)
    count = 0
    for slot in range(first.size - 1):
        if first[slot + 1] > first[slot]:
            active[count] = slot
            count += 1
    return active[:count]


@helper
def _pair_data(pairs: Any, weights: Any, size: int) -> Any:
    """Token, offset of its hidden state and router weight of every pair: [pairs] each."""
    token_of, starts = np.empty(pairs.size, np.int64), np.empty(pairs.size, np.int64)
    pair_weights = np.empty(pairs.size, np.float32)
    top_k = weights.shape[1]
    for i in range(pairs.size):
        token_of[i] = pairs[i] // top_k
        starts[i] = token_of[i] * size
        pair_weights[i] = weights[token_of[i], pairs[i] % top_k]
    return token_of, starts, pair_weights


@helper
def _clear(totals: Any) -> None:
    for token in range(totals.shape[0]):
        for row in range(totals.shape[1]):
            totals[token, row] = 0.0


@helper
def _gate_and_up(
    hidden: Any, gate_up: Any, slot: int, begin: int, end: int, first: int, last: int,
    hidden_starts: Any, gates: Any, ups: Any, sums: Any,
) -> None:  # fmt: skip
    """gates and ups [pair, row] for rows begin..end and pairs first..last of one slot."""
    double_width, length = gate_up.shape[1:]
    half = double_width // 2 * length
    start, size = (slot * double_width + begin) * length, (end - begin) * length
    _stream(
        gate_up, start, size, start + half, hidden, hidden_starts, first, last, begin, gates, sums
    )
    _stream(
        gate_up, start + half, size, start + size, hidden, hidden_starts, first, last, begin, ups,
        sums,
    )  # fmt: skip


@helper
def _stream(
    matrix: Any, start: int, size: int, following: int, x: Any, x_starts: Any, first: int,
    last: int, begin: int, out: Any, sums: Any,
) -> None:  # fmt: skip
    """out[pair, begin + r] = row r . x[pair], for rows that fill matrix[start : start + size].

    One row after another is the order in which memory is read fastest. `following`: where it is
    read next. Tiles of many pairs stay in the second-level cache meanwhile.
    """
    length = matrix.shape[2]
    rows = size // length
    tile = max(TILE_INPUTS // length // 12 * 12, 12)
    while last - first > tile:
        _panels(matrix, start, rows, x, x_starts, first, first + tile, begin, out, sums)
        first += tile
    if last - first > ROW_COLUMNS:
        _panels(matrix, start, rows, x, x_starts, first, last, begin, out, sums)
        return
    n = last - first
    for r in range(rows):
        offset = start + r * length
        ahead = AHEAD
        if offset + length + AHEAD > start + size:
            ahead += following - start - size
        dot_row(
            pointer(matrix), offset, ahead, pointer(x), pointer(x_starts[first:]), n, length,
            pointer(sums),
        )  # fmt: skip
        for c in range(n):
            out[first + c, begin + r] = sums[c]


@helper
def _panels(
    matrix: Any, start: int, rows: int, x: Any, x_starts: Any, first: int, last: int, begin: int,
    out: Any, sums: Any,
) -> None:  # fmt: skip
    """`_stream` for many pairs: `panel_rows()` rows at a time, and the rows that are left."""
    length = matrix.shape[2]
    panels = rows // panel_rows() * panel_rows()
    for r in range(0, panels, panel_rows()):
        for pair in range(first, last, 3):
            n = min(3, last - pair)
            dot_panel(
                pointer(matrix), start + r * length, length, pointer(x),
                pointer(x_starts[pair:]), n, length, pointer(sums),
            )  # fmt: skip
            for i in range(panel_rows()):
                for c in range(n):
                    out[pair + c, begin + r + i] = sums[i * n + c]
    for r in range(panels, rows):
        for pair in range(first, last, ROW_COLUMNS):
            n = min(ROW_COLUMNS, last - pair)
            dot_row(
                pointer(matrix), start + r * length, AHEAD, pointer(x), pointer(x_starts[pair:]),
                n, length, pointer(sums),
            )  # fmt: skip
            for c in range(n):
                out[pair + c, begin + r] = sums[c]


@helper
def _activate(
    gates: Any, ups: Any, pair_weights: Any, begin: int, end: int, first: int, last: int
) -> None:
    """gates[pair, row] becomes weight * silu(gate) * up."""
    for pair in range(first, last):
        gate, up = gates[pair, begin:end], ups[pair, begin:end]
        weight = pair_weights[pair]
        for i in range(gate.size):
            gate[i] = weight * (silu(gate[i]) * up[i])


@helper
def _project(
    activations: Any, down: Any, slot: int, following: int, begin: int, end: int, first: int,
    last: int, activation_starts: Any, token_of: Any, parts: Any, totals: Any,
    sums: Any,
) -> None:  # fmt: skip
    """totals[token, row - begin] += down[row] . activations[pair] for rows begin..end of a slot.

    parts: [pairs at once, rows at least] float32, for the products of many pairs.
    """
    out_size, length = down.shape[1:]
    start, size = (slot * out_size + begin) * length, (end - begin) * length
    jump = (following - slot) * out_size * length - size
    while last - first > ROW_COLUMNS:
        n = min(last - first, parts.shape[0])
        _panels(
            down, start, end - begin, activations, activation_starts[first:], 0, n, 0, parts, sums
        )
        for pair in range(n):
            _add(parts[pair, : end - begin], totals[token_of[first + pair]])
        first += n
    n = last - first
    if n == 0:
        return
    for row in range(end - begin):
        offset = start + row * length
        ahead = AHEAD
        if offset + length + AHEAD > start + size:
            ahead += jump
        dot_row(
            pointer(down), offset, ahead, pointer(activations),
            pointer(activation_starts[first:]), n, length, pointer(sums),
        )  # fmt: skip
        for c in range(n):
            totals[token_of[first + c], row] += sums[c]


@helper
def _add(part: Any, total: Any) -> None:
    for i in range(part.size):
        total[i] += part[i]
