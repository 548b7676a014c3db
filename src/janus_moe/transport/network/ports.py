"""The ends of an exchange whose instances are processes: lockstep by news, rows by programs.

An attention instance runs the dispatch program of a plan in `dispatch` and the reply program in
`combine`; an expert instance in `accept` and `reply`. Receives for the next exchange are posted as
soon as their buffers are free, while the other pool computes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from janus_moe.errors import ConfigError, ExchangeClosed, ExchangeTimeout
from janus_moe.spec import ExchangePlanName
from janus_moe.transport.base import Combined, ReplyMetadata, Ticket, WaitRule, Work
from janus_moe.transport.exchange_plans import egate_programs
from janus_moe.transport.lockstep.control_block import exchange_key, step_and_layer
from janus_moe.transport.lockstep.ports import AttentionSteps, ExpertExchanges, Port
from janus_moe.transport.lockstep.reply_metadata import check_routing
from janus_moe.transport.network.channel import ChannelAborted, Pending
from janus_moe.transport.network.endpoint import Endpoint
from janus_moe.transport.network.executor import BoundProgram
from janus_moe.transport.network.message_buffers import pack_metadata, unpack_metadata
from janus_moe.transport.network.plan_selection import PlanSource, lower_quartile, plan_in
from janus_moe.transport.network.receive_slots import HostReceive, ReceiveSlot

Programs = tuple[BoundProgram, BoundProgram]
_KEPT = 64


class _Programs:
    """The bound programs of one instance by plan and token counts."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._kept: dict[tuple[ExchangePlanName, tuple[int, ...]], Programs] = {}

    def of(self, plan: ExchangePlanName, counts: tuple[int, ...]) -> Programs:
        """(dispatch, reply) of a batch with so many rows per attention instance."""
        key = (plan, counts)
        if key not in self._kept:
            if len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            executor = self._endpoint.executor
            dispatch, reply = egate_programs(plan, self._endpoint.topology, counts, executor.rank)
            self._kept[key] = (executor.bind(dispatch), executor.bind(reply))
        return self._kept[key]


class _Clock:
    """Times the exchanges of a step, for the choice of the next plans."""

    def __init__(self) -> None:
        self._started = 0.0
        self._seconds: list[float] = []

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self) -> None:
        self._seconds.append(time.perf_counter() - self._started)

    def take(self) -> float:
        """Of the step's exchanges, 0 for none; the first one also waits for the peers."""
        seconds, self._seconds = self._seconds, []
        return lower_quartile(seconds[1:] or seconds) if seconds else 0.0


class _Seated(Port):
    """What ports do differently at a seat: whatever ends them ends the seat."""

    _endpoint: Endpoint

    def close(self) -> None:
        super().close()
        self._endpoint.fail(ExchangeClosed(f"{self._instance}: its end of the exchange was closed"))

    def _wait_for(
        self, ready: Callable[[], bool], late: Callable[[float], ExchangeTimeout | None]
    ) -> None:
        try:
            super()._wait_for(ready, late)
        except ExchangeTimeout as error:
            self._endpoint.fail(error)
            raise


class NetworkAttention(_Seated, AttentionSteps):
    """An `AttentionPort`. dtype: of the hidden states. source: of the plans; that of instance 0
    counts."""

    def __init__(
        self,
        index: int,
        endpoint: Endpoint,
        source: PlanSource,
        rule: WaitRule,
        buffer: Tensor,
        dtype: torch.dtype,
    ) -> None:
        self._endpoint = endpoint
        self._result = buffer
        self._dtype = dtype
        super().__init__(index, endpoint.control_block(), endpoint.wiring, self._check_fits, rule)
        self._bound = _Programs(endpoint)
        self._programs: Programs | None = None
        self._source = source
        self._clock = _Clock()
        self._plan: ExchangePlanName = "1pc"
        self._notice = ""
        self._metadata_words = [0] * (3 * endpoint.topology.num_expert_instances)
        endpoint.start(rule)

    def begin_step(self, num_tokens: int) -> int:
        seconds = self._clock.take()
        if seconds and self._counts:
            self._notice = self._source.observe(sum(self._counts), seconds) or self._notice
        self._plans = self._source.packed_plans
        step = super().begin_step(num_tokens)
        self._endpoint.broadcast.publish()
        return step

    def dispatch(self, layer: int, hidden: Tensor) -> Ticket:
        key = self._next_key(layer, hidden)
        if hidden.dtype != self._dtype:
            raise ValueError(f"dispatch of {hidden.dtype}, the exchange has {self._dtype}")
        self._check_open()
        self._endpoint.phase = ("announce", self._step, layer)
        counts = self._counts or self._begin_layers(layer)
        self._plan = plan_in(self._control_block.plans(self._step), sum(counts))
        self._clock.start()
        self._programs = program, reply = self._bound.of(self._plan, counts)
        ticket = Ticket(self._step_epoch, self._step, layer)
        self._key = key
        self._in_flight = True
        self._control_block.dispatch(self._index, key)
        executor = self._endpoint.executor
        with self._endpoint.data_wait("dispatch", self._step, layer, self._late_peers):
            executor.post(program)
            executor.run(program, ticket, {"input": hidden.contiguous()}, self._metadata_words)
            executor.post(reply)
        return ticket

    def combine(self, ticket: Ticket) -> Combined:
        if not self._in_flight or exchange_key(ticket.step, ticket.layer) != self._key:
            raise ValueError(f"{self._instance}: {ticket} is not in flight")
        self._check_open()
        assert self._programs is not None
        dispatch, reply = self._programs
        executor = self._endpoint.executor
        with self._endpoint.data_wait("reply", ticket.step, ticket.layer, self._late_reply):
            executor.run(reply, ticket, {"result": self._result}, self._metadata_words)
            executor.post(dispatch)
        self._clock.stop()
        self._in_flight = False
        replies = unpack_metadata(self._metadata_words)
        check_routing(ticket, replies)
        notice, self._notice = self._notice, ""
        return Combined(self._result[: self._num_tokens], replies, self._plan, notice)

    def _late_peers(self, waited_s: float) -> ExchangeTimeout | None:
        """While rows are gathered: blames who has not dispatched, or whose rows are missing."""
        peer = self._control_block.silent_dispatchers(self._key, self._counts or ())
        waiting_for = self._endpoint.executor.waiting_for
        if not peer and waiting_for is not None:
            peer = self._control_block.name(self._endpoint.topology.instance(waiting_for))
        stage, step, layer = self._endpoint.phase
        return ExchangeTimeout(peer=peer, stage=stage, step=step, layer=layer, waited_s=waited_s)

    def _check_fits(self, num_tokens: int) -> None:
        if num_tokens > len(self._result):
            raise ConfigError(
                f"{self._instance}: a step of {num_tokens} tokens, but the exchange has room for "
                f"{len(self._result)} (--max-num-batched-tokens)"
            )


class NetworkExpert(_Seated, ExpertExchanges):
    """An `ExpertPort`. buffer: for the batch."""

    def __init__(self, index: int, endpoint: Endpoint, rule: WaitRule, buffer: Tensor) -> None:
        self._endpoint = endpoint
        super().__init__(index, endpoint.control_block(), endpoint.wiring, rule)
        self._batch = buffer
        self._bound = _Programs(endpoint)
        self._arrivals = MessageArrivals(endpoint.wakeup.notify)
        self._armed: tuple[int, tuple[int, ...], Programs] | None = None  # step, counts
        self._armed_step = -1
        self._metadata_words = [0] * (3 * endpoint.topology.num_expert_instances)
        endpoint.start(rule)

    def accept(self) -> Work | None:
        self._wait_for(self._woken_or_arrived, self._late)
        if self._woken:
            self._woken = False
            return None
        assert self._armed is not None
        step, counts, (dispatch, reply) = self._armed
        arrived = dispatch.receives[0][1].buffer.read_ticket()
        ticket = Ticket(self._control_block.epoch(step), step, arrived.layer)
        executor = self._endpoint.executor
        with self._endpoint.data_wait("dispatch", step, ticket.layer, self._late_now):
            executor.run(dispatch, ticket, {"batch": self._batch}, self._metadata_words)
            executor.post(reply)
        return Work(ticket, self._batch[: sum(counts)], counts)

    def reply(self, work: Work, partial: Tensor, metadata: ReplyMetadata) -> None:
        self._check_reply(work, partial)
        if partial.dtype != torch.float32:
            raise ValueError(f"reply of {partial.dtype}, partial sums are float32")
        assert self._armed is not None
        ticket = work.ticket
        dispatch, reply = self._armed[2]
        self._metadata_words[3 * self._index : 3 * self._index + 3] = pack_metadata((metadata,))
        self._done = key = exchange_key(ticket.step, ticket.layer)
        self._control_block.reply(self._index, key, metadata)
        executor = self._endpoint.executor
        with self._endpoint.data_wait("reply", ticket.step, ticket.layer, self._late_peers):
            executor.post(dispatch)
            self._arrivals.watch(dispatch.receives[0][1])
            executor.run(reply, ticket, {"partial": partial.contiguous()}, self._metadata_words)

    def close(self) -> None:
        super().close()
        self._arrivals.stop()

    def _woken_or_arrived(self) -> bool:
        if self._woken:
            return True
        step = self._control_block.latest_common()
        if step != self._armed_step:
            self._arm(step)
        if self._armed is None:
            return False
        slot = self._armed[2][0].receives[0][1]
        # The next step's rows may be here before the last word of its announcements.
        return self._arrivals.has(slot) and slot.buffer.read_ticket().step == step

    def _arm(self, step: int) -> None:
        """Gets ready for the exchanges of a step that everybody has announced."""
        self._armed_step = step
        counts = self._control_block.counts(step)
        self._armed = None
        if not any(counts):
            return
        plan = plan_in(self._control_block.plans(step), sum(counts))
        programs = self._bound.of(plan, counts)
        with self._endpoint.data_wait("dispatch", step, 0, lambda waited_s: None):
            self._endpoint.executor.post(programs[0])
        self._arrivals.watch(programs[0].receives[0][1])
        self._armed = (step, counts, programs)

    def _late(self, waited_s: float) -> ExchangeTimeout | None:
        """Nobody is late before anybody has begun."""
        error = self._late_dispatch(waited_s)
        key = self._control_block.latest_dispatched()
        if error is None and self._armed and key > self._done:
            self._endpoint.phase = ("dispatch", *step_and_layer(key))
            return self._blame(self._armed[2][0].receives[0][0].source, waited_s)
        return error

    def _late_now(self, waited_s: float) -> ExchangeTimeout | None:
        return self._late_dispatch(waited_s) or self._late_peers(waited_s)

    def _late_peers(self, waited_s: float) -> ExchangeTimeout | None:
        """Blames whoever a message is due from."""
        waiting_for = self._endpoint.executor.waiting_for
        if waiting_for is None:
            return None
        return self._blame(waiting_for, waited_s)

    def _blame(self, rank: int, waited_s: float) -> ExchangeTimeout:
        stage, step, layer = self._endpoint.phase
        peer = self._control_block.name(self._endpoint.topology.instance(rank))
        return ExchangeTimeout(peer=peer, stage=stage, step=step, layer=layer, waited_s=waited_s)


class MessageArrivals:
    """Rings when a message is there, for a thread that must also hear other news.

    Neighbours ring by themselves. Else one thread per inlet that is ever watched, as nothing but a
    thread can wait for a message of a channel.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        self._watches: dict[int, _Watch] = {}

    def watch(self, slot: ReceiveSlot) -> None:
        """Waits for the receive that is posted there, unless it is waited for already."""
        if isinstance(slot, HostReceive):
            return
        watch = self._watches.get(id(slot))
        if watch is None:
            watch = self._watches[id(slot)] = _Watch(self._notify)
        assert slot.pending is not None
        watch.begin(slot.pending)

    def has(self, slot: ReceiveSlot) -> bool:
        """Whether the message is there that was watched for."""
        if isinstance(slot, HostReceive):
            return slot.pending is not None and slot.pending.arrived()
        return self._watches[id(slot)].arrived is slot.pending

    def stop(self) -> None:
        for watch in self._watches.values():
            watch.begin(None)


class _Watch:
    def __init__(self, notify: Callable[[], None]) -> None:
        self.arrived: Pending | None = None
        self._begun: Pending | None = None
        self._notify = notify
        self._orders: queue.SimpleQueue[Pending | None] = queue.SimpleQueue()
        threading.Thread(target=self._live, name="arrivals", daemon=True).start()

    def begin(self, pending: Pending | None) -> None:
        if pending is None or pending is not self._begun:
            self._begun = pending
            self._orders.put(pending)

    def _live(self) -> None:
        while (pending := self._orders.get()) is not None:
            with suppress(ConnectionError, ChannelAborted):  # the seat learns it from the news
                pending.wait()
                self.arrived = pending
            self._notify()
