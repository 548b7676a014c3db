"""Carries out one instance's programs over a channel.

Every pair of instances, direction and lane has one buffer at each end. A receive is posted into it
as soon as what it held is used up, so a sender finds the receiver ready. This module knows nothing
of steps and peers that are late: `dist_ports` decides when a program runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from janus_moe.errors import ExchangeClosed, ExchangeError, ExchangeTimeout, PeerLost
from janus_moe.transport.base import Ticket
from janus_moe.transport.channel import Channel, ChannelAborted, Pending
from janus_moe.transport.message_buffers import MessageBuffer, RowFormat
from janus_moe.transport.plans.program import (
    Add,
    Buffer,
    Clear,
    Direction,
    Message,
    Move,
    Program,
    Stage,
)
from janus_moe.transport.plans.rows import Index
from janus_moe.transport.plans.topology import Topology

Lane = tuple[int, Direction, int]  # peer, direction, number
Record = Callable[[int, str, int, str, int, int], None]
BoundMove = tuple[str, Any, Any, Any, Any]  # kind, target, its rows, source, its rows


class Inlet:
    """Where the messages of one lane come in; `pending` while a receive is posted."""

    def __init__(self, buffer: MessageBuffer) -> None:
        self.buffer = buffer
        self.pending: Pending | None = None
        self.posted_ns = 0


class BoundStage:
    """A stage with its buffers. sends: [(message, buffer, bytes, whether it is passed on)]."""

    def __init__(self, executor: Executor, stage: Stage, direction: Direction) -> None:
        self.sends: list[tuple[Message, MessageBuffer, Tensor, bool]] = []
        for send in stage.sends:
            passed_on = send.content is not send.message
            buffer = executor.buffer(send.content, direction)
            wire = buffer.wire(send.message.num_rows)
            self.sends.append((send.message, buffer, wire, passed_on))
        self.receives = [(m, executor.inlet(m, direction)) for m in stage.receives]
        self.moves = [executor.bind_move(move, direction) for move in stage.moves]


class BoundProgram:
    """A program with its buffers, for any number of runs."""

    def __init__(self, executor: Executor, program: Program) -> None:
        self.direction: Direction = program.direction
        self.stages = [BoundStage(executor, stage, program.direction) for stage in program.stages]
        self.receives = [pair for stage in self.stages for pair in stage.receives]


class Executor:
    """Of one instance. record: told of every message as (peer, "send" or "receive", bytes, stage,
    start ns, end ns) by `time.perf_counter_ns`; a send ends when it is known to be over.

    timeout_s: limit of each wait; None: none.
    """

    def __init__(
        self,
        rank: int,
        topology: Topology,
        channel: Channel,
        format_: RowFormat,
        timeout_s: float | None = None,
        record: Record | None = None,
    ) -> None:
        self.rank = rank
        self.waiting_for: int | None = None
        self._topology = topology
        self._channel = channel
        self._format = format_
        self.timeout_s = timeout_s
        self.record = record
        self._inlets: dict[Lane, Inlet] = {}
        self._outlets: dict[Lane, MessageBuffer] = {}
        self._scratch: Tensor | None = None
        self._outstanding: list[tuple[Pending, Message, Direction, int, int]] = []

    # --- binding ------------------------------------------------------------------------------

    def bind(self, program: Program) -> BoundProgram:
        return BoundProgram(self, program)

    def inlet(self, message: Message, direction: Direction) -> Inlet:
        lane = (message.source, direction, message.lane)
        if lane not in self._inlets:
            self._inlets[lane] = Inlet(MessageBuffer(self._format, direction))
        return self._inlets[lane]

    def buffer(self, message: Message, direction: Direction) -> MessageBuffer:
        """Of a message that this instance sends or gets."""
        if message.target == self.rank:
            return self.inlet(message, direction).buffer
        lane = (message.target, direction, message.lane)
        if lane not in self._outlets:
            self._outlets[lane] = MessageBuffer(self._format, direction)
        return self._outlets[lane]

    def bind_move(self, move: Move, direction: Direction) -> BoundMove:
        target = self._rows(move.target, direction)
        if isinstance(move, Clear):
            return "clear", target, slice(0, move.target.num_rows), None, None
        kind = "add" if isinstance(move, Add) else "copy"
        into, out_of = self._index(move.target_rows), self._index(move.source_rows)
        if kind == "add" and not isinstance(into, slice):
            kind = "add at"
        return kind, target, into, self._rows(move.source, direction), out_of

    def _rows(self, buffer: Buffer, direction: Direction) -> Any:
        """An array, or the name of a buffer that a run brings along."""
        if isinstance(buffer, Message):
            return self.buffer(buffer, direction).rows
        if buffer.kind != "scratch":
            return buffer.kind
        if self._scratch is None:
            shape = (self._format.max_rows, self._format.width)
            self._scratch = torch.empty(shape, dtype=torch.float32, device=self._format.device)
        return self._format.array(self._scratch)

    def _index(self, index: Index) -> Any:
        if isinstance(index, range):
            return slice(index.start, index.stop)
        on_host = self._format.device.type == "cpu"
        return index if on_host else torch.from_numpy(index).to(self._format.device)

    # --- running ------------------------------------------------------------------------------

    def post(self, program: BoundProgram) -> None:
        """Posts the program's receives, but for those that are posted already."""
        now = time.perf_counter_ns() if self.record else 0
        for message, inlet in program.receives:
            if inlet.pending is None:
                tag = _tag(program.direction, message.lane)
                try:
                    inlet.pending = self._channel.receive(message.source, tag, inlet.buffer.data)
                except (ConnectionError, ChannelAborted) as error:
                    raise self._explained(error, message, message.source, None, 0.0) from error
                inlet.posted_ns = now

    def run(
        self,
        program: BoundProgram,
        ticket: Ticket,
        local: Mapping[str, Tensor],
        notes: list[int],
    ) -> None:
        """Runs a program whose receives are posted and whose last sends are settled.

        local: the instance's own buffers by name. notes: words of the notes of all expert
        instances; this instance's go out, those of the others come in.
        """
        arrays = {name: self._format.array(rows) for name, rows in local.items()}
        for stage in program.stages:
            for message, buffer, wire, passed_on in stage.sends:
                if not passed_on:
                    buffer.write_header(ticket, message.num_rows, notes)
                self._send(program.direction, message, wire, ticket)
            for message, inlet in stage.receives:
                self._finish(program.direction, message, inlet, ticket)
                inlet.buffer.read_header(ticket, message, notes)
            for move in stage.moves:
                _make(move, arrays)

    def settle(self, ticket: Ticket | None = None) -> None:
        """Waits until all sends are over, so that buffers may be used again."""
        for pending, message, direction, num_bytes, started in self._outstanding:
            self._await(pending, message, message.target, ticket)
            if self.record:
                end = time.perf_counter_ns()
                stage = f"{direction} {message.name}"
                self.record(message.target, "send", num_bytes, stage, started, end)
        self._outstanding.clear()

    def _send(self, direction: Direction, message: Message, wire: Tensor, ticket: Ticket) -> None:
        started = time.perf_counter_ns() if self.record else 0
        try:
            tag = _tag(direction, message.lane)
            pending = self._channel.send(message.target, tag, wire)
        except (ConnectionError, ChannelAborted) as error:
            raise self._explained(error, message, message.target, ticket, 0.0) from error
        self._outstanding.append((pending, message, direction, wire.numel(), started))

    def _finish(self, direction: Direction, message: Message, inlet: Inlet, ticket: Ticket) -> None:
        assert inlet.pending is not None, "receives are posted before a program runs"
        self._await(inlet.pending, message, message.source, ticket)
        inlet.pending = None
        if self.record:
            size = inlet.buffer.wire(message.num_rows).numel()
            stage = f"{direction} {message.name}"
            end = time.perf_counter_ns()
            self.record(message.source, "receive", size, stage, inlet.posted_ns, end)

    def _await(self, pending: Pending, message: Message, peer: int, ticket: Ticket | None) -> None:
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
        message: Message,
        peer: int,
        ticket: Ticket | None,
        waited_s: float,
    ) -> ExchangeError:
        name = str(self._topology.instance(peer))
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


def _make(move: BoundMove, local: Mapping[str, Any]) -> None:
    kind, target, into, source, out_of = move
    if isinstance(target, str):
        target = local[target]
    if isinstance(source, str):
        source = local[source]
    if kind == "copy":
        target[into] = source[out_of]
    elif kind == "add":
        part = target[into]
        part += source[out_of]
    elif kind == "add at":
        target[into] += source[out_of]
    else:
        target[into] = 0
