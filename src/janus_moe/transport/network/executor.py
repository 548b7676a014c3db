"""Carries out one instance's programs over a channel and, between host peers, in shared memory.

Every pair of instances, direction and lane has one buffer at each end of a channel; host peers read
the sender's. A receive is posted as soon as what the buffer held is used up, so a sender finds the
receiver ready. A buffer is written again when what was sent from it is over. This module knows
nothing of steps and peers that are late: `ports` decides when a program runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from janus_moe.errors import ExchangeClosed, ExchangeError, ExchangeTimeout, PeerLost
from janus_moe.spec import InstanceId
from janus_moe.transport.base import Ticket
from janus_moe.transport.exchange_plans.program import (
    Buffer,
    Direction,
    Program,
    RowMessage,
    RowOp,
    SendMessage,
    Stage,
)
from janus_moe.transport.exchange_plans.rows import Index
from janus_moe.transport.host_memory.host_peers import TAGS, HostPeers, NoHostPeers
from janus_moe.transport.network.channel import Channel, ChannelAborted, Pending
from janus_moe.transport.network.message_buffers import MessageBuffer, RowFormat, buffer_bytes
from janus_moe.transport.network.receive_slots import HostReceive, ReceiveSlot, RemoteReceive
from janus_moe.transport.network.row_ops import BoundRowOp, apply, bind, fuse_copy_add

Lane = tuple[int, Direction, int]  # peer, direction, number
Record = Callable[[int, str, int, str, int, int], None]


@dataclass(frozen=True, slots=True)
class BoundSend:
    """A message in its buffer.

    wire: its bytes, header included.
    passed_on: the bytes were received as they are.
    origin: slot that they have to be copied from; None means that they lie in `buffer`.
    """

    message: RowMessage
    buffer: MessageBuffer
    wire: Tensor
    passed_on: bool
    origin: HostReceive | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """A send that may not be over."""

    pending: Pending
    message: RowMessage
    direction: Direction
    num_bytes: int
    started_ns: int
    ticket: Ticket


class BoundStage:
    """A stage with its buffers."""

    def __init__(self, executor: Executor, stage: Stage, direction: Direction) -> None:
        self.sends = [executor.bind_send(send, direction) for send in stage.sends]
        self.receives = [(m, executor.slot(m, direction)) for m in stage.receives]
        self.row_ops = executor.bind_row_ops(stage.row_ops, direction)


class BoundProgram:
    """A program with its buffers, for any number of runs.

    receives: (message, slot) of all stages.
    send_buffers: that a run writes.
    host_slots: messages of host peers that it reads.
    """

    def __init__(self, executor: Executor, program: Program) -> None:
        self.direction: Direction = program.direction
        self.stages = [BoundStage(executor, stage, program.direction) for stage in program.stages]
        self.receives = [pair for stage in self.stages for pair in stage.receives]
        sends = [send for stage in self.stages for send in stage.sends]
        self.send_buffers = [send.buffer for send in sends if not send.passed_on or send.origin]
        self.host_slots = [slot for _, slot in self.receives if isinstance(slot, HostReceive)]


class Executor:
    """The executor of one instance.

    rank: global rank of the instance.
    members: [ranks] all instances, for errors.
    timeout_s: limit of each wait; None means no limit.
    record: told of every message as (peer, "send" or "receive", bytes, stage, start ns, end ns) by
        `time.perf_counter_ns`; a send ends when it is known to be over.
    waiting_for: rank that a message is due from, or to; None means that no wait goes on.
    """

    def __init__(
        self,
        rank: int,
        members: Sequence[InstanceId],
        channel: Channel,
        format_: RowFormat,
        timeout_s: float | None = None,
        record: Record | None = None,
        host_peers: HostPeers | NoHostPeers | None = None,
    ) -> None:
        self.rank = rank
        self.waiting_for: int | None = None
        self._members = members
        self._channel = channel
        self._format = format_
        self.timeout_s = timeout_s
        self.record = record
        self._slots: dict[Lane, ReceiveSlot] = {}
        self._send_buffers: dict[Lane, MessageBuffer] = {}
        self._scratch: Tensor | None = None
        self._sent: dict[MessageBuffer, list[Sent]] = {}
        self._host_peers = host_peers or NoHostPeers()

    # --- binding ------------------------------------------------------------------------------

    def bind(self, program: Program) -> BoundProgram:
        return BoundProgram(self, program)

    def slot(self, message: RowMessage, direction: Direction) -> ReceiveSlot:
        lane = (message.source, direction, message.lane)
        if lane not in self._slots:
            self._slots[lane] = self._make_slot(message, direction)
        return self._slots[lane]

    def send_buffer(self, message: RowMessage, direction: Direction) -> MessageBuffer:
        lane = (message.target, direction, message.lane)
        if lane not in self._send_buffers:
            self._send_buffers[lane] = self._make_buffer(direction)
        return self._send_buffers[lane]

    def bind_send(self, send: SendMessage, direction: Direction) -> BoundSend:
        message, content = send.message, send.content
        passed_on = content is not message
        slot = self.slot(content, direction) if passed_on else None
        origin = slot if isinstance(slot, HostReceive) else None
        buffer = (
            slot.buffer if isinstance(slot, RemoteReceive) else self.send_buffer(message, direction)
        )
        return BoundSend(message, buffer, buffer.wire(message.num_rows), passed_on, origin)

    def bind_row_ops(self, row_ops: Sequence[RowOp], direction: Direction) -> list[BoundRowOp]:
        return [
            bind(row_op, lambda b: self._rows(b, direction), self._index)
            for row_op in fuse_copy_add(row_ops)
        ]

    def _rows(self, buffer: Buffer, direction: Direction) -> Any:
        """An array, the slot of a host peer's message, or the name of a buffer of the run."""
        if isinstance(buffer, RowMessage):
            if buffer.target != self.rank:
                return self.send_buffer(buffer, direction).rows
            slot = self.slot(buffer, direction)
            return slot if isinstance(slot, HostReceive) else slot.buffer.rows
        if buffer.kind != "scratch":
            return buffer.kind
        if self._scratch is None:
            shape = (self._format.max_rows, self._format.width)
            self._scratch = torch.empty(shape, dtype=self._format.sums, device=self._format.device)
        return self._format.array(self._scratch)

    def _index(self, index: Index) -> Any:
        if isinstance(index, range):
            return slice(index.start, index.stop)
        on_host = self._format.device.type == "cpu"
        return index if on_host else torch.from_numpy(index).to(self._format.device)

    def _make_slot(self, message: RowMessage, direction: Direction) -> ReceiveSlot:
        peer, tag = message.source, _tag(direction, message.lane)
        if self._is_host_peer(peer, tag):
            size = buffer_bytes(self._format, direction)
            return HostReceive(
                self._host_peers,
                peer,
                tag,
                lambda data: MessageBuffer(self._format, direction, data[:size]),
            )
        return RemoteReceive(self._channel, peer, tag, self._make_buffer(direction))

    def _make_buffer(self, direction: Direction) -> MessageBuffer:
        """In memory that host peers can read, if there are any."""
        size, device = buffer_bytes(self._format, direction), self._format.device
        on_host = device.type == "cpu"
        data = (
            self._host_peers.memory(size)
            if on_host
            else torch.empty(size, dtype=torch.uint8, device=device)
        )
        return MessageBuffer(self._format, direction, data)

    def _is_host_peer(self, peer: int, tag: int) -> bool:
        return peer in self._host_peers.peers and tag < TAGS

    # --- running ------------------------------------------------------------------------------

    def post(self, program: BoundProgram) -> None:
        """Posts the program's receives, but for those that are posted already."""
        now = time.perf_counter_ns() if self.record else 0
        for message, slot in program.receives:
            if slot.pending is None:
                if isinstance(slot, RemoteReceive):
                    self._free(slot.buffer)
                try:
                    slot.post()
                except (ConnectionError, ChannelAborted) as error:
                    raise self._explained(error, message, message.source, None, 0.0) from error
                slot.posted_ns = now

    def run(
        self,
        program: BoundProgram,
        ticket: Ticket,
        local: Mapping[str, Tensor],
        metadata_words: list[int],
    ) -> None:
        """Runs a program whose receives are posted.

        local: the instance's own buffers by name.
        metadata_words: of the replies of all expert instances; this instance's go out, those of
            the others come in.
        """
        arrays = {name: self._format.array(rows) for name, rows in local.items()}
        for buffer in program.send_buffers:
            self._free(buffer)
        for stage in program.stages:
            for send in stage.sends:
                if send.origin is not None:
                    send.wire.copy_(send.origin.buffer.wire(send.message.num_rows))
                elif not send.passed_on:
                    send.buffer.write_header(ticket, send.message.num_rows, metadata_words)
                self._send(program.direction, send, ticket)
            for message, slot in stage.receives:
                self._finish(program.direction, message, slot, ticket)
                slot.buffer.read_header(ticket, message, metadata_words)
                if isinstance(slot, RemoteReceive):
                    slot.pending = None
            for row_op in stage.row_ops:
                apply(row_op, arrays)
        for slot in program.host_slots:
            slot.release()

    def settle(self) -> None:
        """Waits until all sends are over."""
        for buffer in list(self._sent):
            self._free(buffer)

    def _free(self, buffer: MessageBuffer) -> None:
        """Waits until all sends from a buffer are over, so that it may be used again."""
        for sent in self._sent.pop(buffer, ()):
            self._await(sent.pending, sent.message, sent.message.target, sent.ticket)
            if self.record:
                end = time.perf_counter_ns()
                stage = f"{sent.direction} {sent.message.name}"
                peer = sent.message.target
                self.record(peer, "send", sent.num_bytes, stage, sent.started_ns, end)

    def _send(self, direction: Direction, send: BoundSend, ticket: Ticket) -> None:
        started = time.perf_counter_ns() if self.record else 0
        message, peer, tag = send.message, send.message.target, _tag(direction, send.message.lane)
        channel = self._host_peers if self._is_host_peer(peer, tag) else self._channel
        try:
            pending = channel.send(peer, tag, send.wire)
        except (ConnectionError, ChannelAborted) as error:
            raise self._explained(error, message, peer, ticket, 0.0) from error
        sent = Sent(pending, message, direction, send.wire.numel(), started, ticket)
        self._sent.setdefault(send.buffer, []).append(sent)

    def _finish(
        self, direction: Direction, message: RowMessage, slot: ReceiveSlot, ticket: Ticket
    ) -> None:
        assert slot.pending is not None, "receives are posted before a program runs"
        self._await(slot.pending, message, message.source, ticket)
        if self.record:
            size = slot.buffer.wire(message.num_rows).numel()
            stage = f"{direction} {message.name}"
            end = time.perf_counter_ns()
            self.record(message.source, "receive", size, stage, slot.posted_ns, end)

    def _await(
        self, pending: Pending, message: RowMessage, peer: int, ticket: Ticket | None
    ) -> None:
        started = time.monotonic()
        self.waiting_for = peer
        try:
            pending.wait(self.timeout_s)
        except (TimeoutError, ConnectionError, ChannelAborted) as error:
            waited_s = time.monotonic() - started
            raise self._explained(error, message, peer, ticket, waited_s) from error
        self.waiting_for = None

    def _explained(
        self,
        error: Exception,
        message: RowMessage,
        peer: int,
        ticket: Ticket | None,
        waited_s: float,
    ) -> ExchangeError:
        name = str(self._members[peer])
        step, layer = (-1, -1) if ticket is None else (ticket.step, ticket.layer)
        if isinstance(error, TimeoutError):
            return ExchangeTimeout(
                peer=name, stage=message.name, step=step, layer=layer, waited_s=waited_s
            )
        if isinstance(error, ConnectionError):
            return PeerLost(peer=name, stage=message.name, step=step, layer=layer)
        return ExchangeClosed("the exchange was shut down")


def _tag(direction: Direction, lane: int) -> int:
    return 2 * lane + (direction == "reply")
