"""Row ops with their buffers: what copies, adds and clears rows inside one instance.

Where rows come from and when they are there is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from janus_moe.transport.exchange_plans.program import Add, Buffer, Clear, Copy, LocalBuffer, RowOp
from janus_moe.transport.exchange_plans.rows import Index
from janus_moe.transport.network.receive_slots import HostReceive

Rows = Any
"""An array; the slot of a host peer, whose array is another one with each message; or the name of a
buffer that a run brings along."""


@dataclass(frozen=True, slots=True)
class CopyAdd:
    """target[target_rows] = first[first_rows] + second[second_rows]

    A copy and an add at once, so that the target is written once and never read.
    """

    target: Buffer
    target_rows: range
    first: Buffer
    first_rows: Index
    second: Buffer
    second_rows: Index


@dataclass(frozen=True, slots=True)
class BoundRowOp:
    """A row op with its arrays.

    kind: "clear", "copy", "add", "add at" (rows listed one by one) or "sum" (`CopyAdd`).
    target, into: what is written, and its rows.
    source, out_of: what is read, and its rows.
    second, second_out_of: the other term of a sum, and its rows.
    """

    kind: str
    target: Rows
    into: Any
    source: Rows = None
    out_of: Any = None
    second: Rows = None
    second_out_of: Any = None


def fuse_copy_add(row_ops: Sequence[RowOp]) -> list[RowOp | CopyAdd]:
    """The same result with fewer ops: a copy and the first add to the same rows become one.

    Adds come earlier by that. They may, as no source but scratch changes while ops are applied, and
    as long as those rows are neither read nor changed in between.
    """
    fused: list[RowOp | CopyAdd] = []
    copies: dict[tuple[Buffer, range], int] = {}  # to rows that nothing was added to: their place
    for row_op in row_ops:
        rows = None if isinstance(row_op, Clear) else row_op.target_rows
        key = (row_op.target, rows) if isinstance(rows, range) else None
        if isinstance(row_op, Add) and key in copies and not _is_scratch(row_op.source):
            place = copies.pop(key)
            copy = fused[place]
            assert key is not None and isinstance(copy, Copy)
            fused[place] = CopyAdd(
                *key, copy.source, copy.source_rows, row_op.source, row_op.source_rows
            )
            continue
        read = None if isinstance(row_op, Clear) else row_op.source
        among = rows if isinstance(row_op, Copy) and isinstance(rows, range) else None
        copies = {
            known: place
            for known, place in copies.items()
            if known[0] != read
            and (known[0] != row_op.target or (among is not None and _apart(known[1], among)))
        }
        if isinstance(row_op, Copy) and key is not None and not _is_scratch(row_op.source):
            copies[key] = len(fused)
        fused.append(row_op)
    return fused


def bind(
    row_op: RowOp | CopyAdd, rows: Callable[[Buffer], Rows], index: Callable[[Index], Any]
) -> BoundRowOp:
    """rows, index: what the executor has for a buffer and for places in it."""
    target = rows(row_op.target)
    if isinstance(row_op, Clear):
        return BoundRowOp("clear", target, slice(0, row_op.target.num_rows))
    into = index(row_op.target_rows)
    if isinstance(row_op, CopyAdd):
        first, second = rows(row_op.first), rows(row_op.second)
        return BoundRowOp(
            "sum", target, into, first, index(row_op.first_rows), second, index(row_op.second_rows)
        )
    kind = "add" if isinstance(row_op, Add) else "copy"
    if kind == "add" and not isinstance(into, slice):
        kind = "add at"
    return BoundRowOp(kind, target, into, rows(row_op.source), index(row_op.source_rows))


def apply(row_op: BoundRowOp, local: Mapping[str, Any]) -> None:
    """local: arrays by name."""
    target, into = _array(row_op.target, local), row_op.into
    if row_op.kind == "clear":
        target[into] = 0
        return
    part = _array(row_op.source, local)[row_op.out_of]
    if row_op.kind == "copy":
        target[into] = part
    elif row_op.kind == "sum":
        other = _array(row_op.second, local)[row_op.second_out_of]
        add = np.add if isinstance(target, np.ndarray) else torch.add
        add(part, other, out=target[into])
    elif row_op.kind == "add":
        rows = target[into]
        rows += part
    else:
        target[into] += part


def _array(rows: Rows, local: Mapping[str, Any]) -> Any:
    if isinstance(rows, str):
        return local[rows]
    return rows.buffer.rows if isinstance(rows, HostReceive) else rows


def _is_scratch(buffer: Buffer) -> bool:
    return isinstance(buffer, LocalBuffer) and buffer.kind == "scratch"


def _apart(left: range, right: range) -> bool:
    return left.stop <= right.start or right.stop <= left.start
