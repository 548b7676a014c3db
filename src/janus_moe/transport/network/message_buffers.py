"""Memory of messages: a header of 64-bit words and packed rows, in one contiguous piece.

header   [magic, epoch, step, layer, rows, 0, 0, 0] and in replies, per expert instance,
         [routing digest, activated, scheduler ns]
rows     [rows, width] of the direction's dtype
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from janus_moe.errors import ExchangeError
from janus_moe.transport.base import ReplyMetadata, Ticket
from janus_moe.transport.exchange_plans.program import Direction, RowMessage, header_bytes

_WORDS = 8
_METADATA_WORDS = 3
_MAGIC = 0x4A616E75730001  # "Janus" and the version of the header


@dataclass(frozen=True, slots=True)
class RowFormat:
    """What rows of messages look like.

    max_rows: of the largest message.
    width: elements of a row.
    num_expert_instances: whose metadata a reply's header has room for.
    dispatch: dtype of the rows on their way to the experts.
    sums: dtype of the partial sums that come back.
    device: where buffers lie.
    """

    max_rows: int
    width: int
    num_expert_instances: int
    dispatch: torch.dtype
    sums: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def dtype(self, direction: Direction) -> torch.dtype:
        return self.dispatch if direction == "dispatch" else self.sums

    def array(self, rows: Tensor) -> Any:
        """What row ops work on: numpy on the CPU, where it is quicker; tensors elsewhere.

        Rows of bfloat16 become int16 for numpy, which has no such dtype.
        """
        if self.device.type != "cpu":
            return rows
        return (rows.view(torch.int16) if rows.dtype == torch.bfloat16 else rows).numpy()


def buffer_bytes(format_: RowFormat, direction: Direction) -> int:
    """Size of a buffer for any message of that direction."""
    row_bytes = format_.width * format_.dtype(direction).itemsize
    return header_bytes(direction, format_.num_expert_instances) + format_.max_rows * row_bytes


class MessageBuffer:
    """Room for one message.

    data: [`buffer_bytes`] uint8, all of it.
    rows: [max_rows, width], as a `RowFormat` sees arrays.
    """

    def __init__(self, format_: RowFormat, direction: Direction, data: Tensor) -> None:
        dtype = format_.dtype(direction)
        header = header_bytes(direction, format_.num_expert_instances)
        self.data = data
        self._header = header
        self._row_bytes = format_.width * dtype.itemsize
        self._has_metadata = direction == "reply"
        rows = self.data[header:].view(dtype).view(format_.max_rows, format_.width)
        self.rows = format_.array(rows)
        self._words = format_.array(self.data[:header].view(torch.int64))

    def wire(self, num_rows: int) -> Tensor:
        """The bytes of a message of so many rows."""
        return self.data[: self._header + num_rows * self._row_bytes]

    def write_header(self, ticket: Ticket, num_rows: int, metadata_words: list[int]) -> None:
        words = [_MAGIC, ticket.epoch, ticket.step, ticket.layer, num_rows, 0, 0, 0]
        if self._has_metadata:
            words += metadata_words
        values = np.array(words, np.int64)
        on_host = isinstance(self._words, np.ndarray)
        self._words[: len(words)] = values if on_host else torch.from_numpy(values)

    def read_header(self, ticket: Ticket, message: RowMessage, metadata_words: list[int]) -> None:
        """Checks that it is `message` of the exchange, and takes the metadata that it carries."""
        words = self._words.tolist()
        if words[:5] != [_MAGIC, ticket.epoch, ticket.step, ticket.layer, message.num_rows]:
            raise ExchangeError(
                f"expected {message.num_rows} rows of {ticket} from rank {message.source}, got a "
                f"header of {words[:5]}; all workers must be of the same version and plan"
            )
        for expert in message.experts:
            place = _METADATA_WORDS * expert
            start = _WORDS + place
            metadata_words[place : place + _METADATA_WORDS] = words[start : start + _METADATA_WORDS]

    def read_ticket(self) -> Ticket:
        """Of the message that came in."""
        words = self._words[:4].tolist()
        return Ticket(epoch=words[1], step=words[2], layer=words[3])


def pack_metadata(replies: tuple[ReplyMetadata, ...]) -> list[int]:
    return [
        word
        for metadata in replies
        for word in (metadata.routing_digest, metadata.activated, metadata.scheduler_ns)
    ]


def unpack_metadata(words: list[int]) -> tuple[ReplyMetadata, ...]:
    """The inverse of `pack_metadata`."""
    starts = range(0, len(words), _METADATA_WORDS)
    return tuple(ReplyMetadata(words[i], words[i + 1], words[i + 2]) for i in starts)
