"""Moves of rows with their buffers: what copies, adds and clears inside one instance.

Where rows come from and when they are there is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from janus_moe.transport.exchange_plans.program import Add, Buffer, Clear, Copy, Local, Move
from janus_moe.transport.exchange_plans.rows import Index
from janus_moe.transport.network.receive_slots import HostReceive

Rows = Any
"""An array; a neighbour's inlet, whose array is another one with each message; or the name of a
buffer that a run brings along."""


@dataclass(frozen=True, slots=True)
class Sum:
    """target[target_rows] = first[first_rows] + second[second_rows]: a copy and an add at once, so
    that the target is written once and never read."""

    target: Buffer
    target_rows: range
    first: Buffer
    first_rows: Index
    second: Buffer
    second_rows: Index


@dataclass(frozen=True, slots=True)
class BoundMove:
    """kind: "clear", "copy", "add", "add at" (rows listed one by one) or "sum"."""

    kind: str
    target: Rows
    into: Any
    source: Rows = None
    out_of: Any = None
    second: Rows = None
    second_out_of: Any = None


def fused(moves: Sequence[Move]) -> list[Move | Sum]:
    """The same result with fewer moves: a copy becomes a sum with the first add to the same rows.

    Adds come earlier by that. They may, as no source but scratch changes while moves are made, and
    as long as those rows are neither read nor changed in between.
    """
    made: list[Move | Sum] = []
    copies: dict[tuple[Buffer, range], int] = {}  # to rows that nothing was added to: their place
    for move in moves:
        rows = None if isinstance(move, Clear) else move.target_rows
        key = (move.target, rows) if isinstance(rows, range) else None
        if isinstance(move, Add) and key in copies and not _is_scratch(move.source):
            place = copies.pop(key)
            copy = made[place]
            assert key is not None and isinstance(copy, Copy)
            made[place] = Sum(*key, copy.source, copy.source_rows, move.source, move.source_rows)
            continue
        read = None if isinstance(move, Clear) else move.source
        among = rows if isinstance(move, Copy) and isinstance(rows, range) else None
        copies = {
            known: place
            for known, place in copies.items()
            if known[0] != read
            and (known[0] != move.target or (among is not None and _apart(known[1], among)))
        }
        if isinstance(move, Copy) and key is not None and not _is_scratch(move.source):
            copies[key] = len(made)
        made.append(move)
    return made


def bind(
    move: Move | Sum, rows: Callable[[Buffer], Rows], index: Callable[[Index], Any]
) -> BoundMove:
    """rows, index: what the executor has for a buffer and for places in it."""
    target = rows(move.target)
    if isinstance(move, Clear):
        return BoundMove("clear", target, slice(0, move.target.num_rows))
    into = index(move.target_rows)
    if isinstance(move, Sum):
        first, second = rows(move.first), rows(move.second)
        return BoundMove(
            "sum", target, into, first, index(move.first_rows), second, index(move.second_rows)
        )
    kind = "add" if isinstance(move, Add) else "copy"
    if kind == "add" and not isinstance(into, slice):
        kind = "add at"
    return BoundMove(kind, target, into, rows(move.source), index(move.source_rows))


def make(move: BoundMove, local: Mapping[str, Any]) -> None:
    """local: arrays by name."""
    target, into = _array(move.target, local), move.into
    if move.kind == "clear":
        target[into] = 0
        return
    part = _array(move.source, local)[move.out_of]
    if move.kind == "copy":
        target[into] = part
    elif move.kind == "sum":
        other = _array(move.second, local)[move.second_out_of]
        add = np.add if isinstance(target, np.ndarray) else torch.add
        add(part, other, out=target[into])
    elif move.kind == "add":
        rows = target[into]
        rows += part
    else:
        target[into] += part


def _array(rows: Rows, local: Mapping[str, Any]) -> Any:
    if isinstance(rows, str):
        return local[rows]
    return rows.buffer.rows if isinstance(rows, HostReceive) else rows


def _is_scratch(buffer: Buffer) -> bool:
    return isinstance(buffer, Local) and buffer.kind == "scratch"


def _apart(left: range, right: range) -> bool:
    return left.stop <= right.start or right.stop <= left.start
