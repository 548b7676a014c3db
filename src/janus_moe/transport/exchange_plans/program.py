"""What one instance does in one direction of an exchange: stages of sends, receives and row ops.

In a stage, an instance first posts its sends, then waits for its receives, then applies its row
ops. What a stage sends was received or computed in an earlier stage, and no send waits for a
receive, so stage by stage all instances get on: there is no cycle to wait in.

A message is one contiguous buffer: a header (`header_bytes`) and packed rows of opaque bytes. What
rows hold and how messages travel is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from janus_moe.transport.exchange_plans.rows import Index, RowSet

Direction = Literal["dispatch", "reply"]
StageName = Literal["pack", "gather", "send", "relay", "spread", "reduce", "collect", "scatter"]

_HEADER_WORDS = 8
_METADATA_WORDS = 3
_WORD_BYTES = 8
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class RowBytes:
    """Bytes of a row in each direction; with gating on the attention side, ids and weights count.

    dispatch: of a hidden state.
    reply: of partial sums.
    """

    dispatch: int
    reply: int


@dataclass(frozen=True, slots=True, eq=False)
class RowMessage:
    """One message between two instances.

    stage, name: of the exchange.
    source, target: global ranks.
    rows: global rows that it holds, packed; all of one group.
    lane: number of the message among those that `source` sends `target` in this direction.
    group: number of the group.
    experts: expert instances whose metadata the header carries; replies only.
    """

    stage: int
    name: StageName
    source: int
    target: int
    rows: RowSet
    lane: int
    group: int
    experts: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class LocalBuffer:
    """A buffer of the instance itself.

    kind: input and result hold rows of an attention instance, batch and partial of an expert
        instance, scratch the sums of a node on the way.
    """

    kind: Literal["input", "batch", "partial", "result", "scratch"]
    num_rows: int
    index: int = 0


Buffer = RowMessage | LocalBuffer


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Sends `message`.

    content: whose bytes it has; another message where that is only passed on.
    """

    message: RowMessage
    content: RowMessage


@dataclass(frozen=True, slots=True)
class Clear:
    """Sets all rows of a buffer to zero."""

    target: Buffer


@dataclass(frozen=True, slots=True)
class Copy:
    """target[target_rows] = source[source_rows]"""

    target: Buffer
    target_rows: Index
    source: Buffer
    source_rows: Index


@dataclass(frozen=True, slots=True)
class Add:
    """target[target_rows] += source[source_rows]"""

    target: Buffer
    target_rows: Index
    source: Buffer
    source_rows: Index


RowOp = Clear | Copy | Add


@dataclass(frozen=True, slots=True)
class Stage:
    number: int
    sends: tuple[SendMessage, ...]
    receives: tuple[RowMessage, ...]
    row_ops: tuple[RowOp, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """Stages in order; those in which the instance has nothing to do are left out."""

    rank: int
    direction: Direction
    stages: tuple[Stage, ...]


def header_bytes(direction: Direction, num_expert_instances: int) -> int:
    """Size of a message's header: fixed words, and in replies metadata of all expert instances."""
    words = _HEADER_WORDS + (_METADATA_WORDS * num_expert_instances if direction == "reply" else 0)
    return -(-words * _WORD_BYTES // _ALIGNMENT) * _ALIGNMENT
