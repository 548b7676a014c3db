"""An instance of a worker in its thread: it serves one generation after the other.

It does not know what instances compute, how they are built, or which generation follows.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numba
import torch

from janus_moe.errors import ExchangeClosed, ExchangeError, RoutingDivergence
from janus_moe.experts.pacing import PaceName
from janus_moe.messages import (
    CommitGeneration,
    FromWorker,
    Setup,
    Stop,
    ToWorker,
    Trace,
    Traced,
)
from janus_moe.spec import InstanceId, Membership
from janus_moe.tracing import SpanLog
from janus_moe.transport import AttentionPort, Exchange, ExpertPort, WaitRule
from janus_moe.transport.network.exchange import NetworkExchange

logger = logging.getLogger(__name__)

Send = Callable[[FromWorker], None]
OnLost = Callable[[ExchangeError, int], None]
ThreadBody = Callable[[queue.SimpleQueue[ToWorker]], None]
MESSAGE_ROWS = {"send": "sent", "receive": "received"}


class Connection(NamedTuple):
    """What an instance does with the exchanges of one membership.

    generation: of the membership.
    wake: makes its thread look at the inbox.
    body: the work of its thread until it is told to leave or the exchanges end; in loopback, where
        attention instances run the experts, an expert's thread only prepares epochs.
    close: ends the waits of its ports with ExchangeClosed.
    """

    generation: int
    wake: Callable[[], None]
    body: ThreadBody
    close: Callable[[], None]


class HostedInstance:
    """An instance in a worker: built once, with its weights, and connected to exchanges later.

    instance_id: its name in messages.
    connect: opens ports of the exchanges of the setup's membership, without using them yet.
    spans: what it does when.
    send: takes its answers to `Trace`.
    release: gives back what it holds besides memory.
    drop: gives back what it holds for a generation that is not served, or not any more.
    """

    def __init__(
        self,
        instance_id: InstanceId,
        connect: Callable[[Setup, Sequence[Exchange], WaitRule, PaceName], Connection],
        spans: SpanLog,
        send: Send,
        release: Callable[[], None] = lambda: None,
        drop: Callable[[int], None] = lambda generation: None,
    ) -> None:
        self.id = instance_id
        self.release = release
        self.drop = drop
        self._connect = connect
        self.spans = spans
        self._send = send
        self._inbox: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
        self._connection: Connection | None = None
        self._abandoned_before = 0
        self._next: queue.SimpleQueue[tuple[Connection, Callable[[], None]] | None] = (
            queue.SimpleQueue()
        )

    def connect(
        self,
        setup: Setup,
        exchanges: Sequence[Exchange],
        rule: WaitRule,
        pace: PaceName = "full",
    ) -> Connection:
        """Gets ready to serve with these exchanges, beside those that it serves with now.

        pace: at which an expert instance loads what it lacks.

        Raises CheckpointError, and ConflictError when the generation was dropped meanwhile.
        """
        connection = self._connect(setup, exchanges, rule, pace)

        def body(inbox: queue.SimpleQueue[ToWorker]) -> None:
            use_threads(setup.num_threads)
            record_messages(self.spans, setup.membership, exchanges)
            connection.body(inbox)

        return connection._replace(body=body)

    def begin(self, connection: Connection, on_begun: Callable[[], None]) -> None:
        """Serves with this connection once it has left the one before; then calls `on_begun`."""
        self._next.put((connection, on_begun))

    def leave(self, order: CommitGeneration) -> None:
        """Makes its thread leave what it serves with, which belongs to an earlier generation."""
        if not order.abandon:
            self.post(order)
            return
        self._abandoned_before = order.generation  # first, for `serve` looks at it last
        if self._connection is not None:
            self._connection.close()

    def finish(self) -> None:
        """Ends the work of its thread with the connection that it has begun."""
        self._next.put(None)

    def stop(self) -> None:
        """Ends the work of its thread now."""
        self.finish()
        self.post(Stop())
        if self._connection is not None:
            self._connection.close()

    def post(self, message: ToWorker) -> None:
        """Puts a message in the inbox and wakes the instance; starts and stops recording."""
        if isinstance(message, Trace):
            self._trace(message.recording)
            return
        self._inbox.put(message)
        if self._connection is not None:
            self._connection.wake()

    def serve(self, on_lost: OnLost) -> None:
        """The work of the instance's thread, until `stop`: one connection after the other.

        on_lost: told of an error that a peer has caused in the exchanges of a generation; the next
            one is served.
        """
        while (following := self._next.get()) is not None:
            self._connection, on_begun = following
            if self._connection.generation < self._abandoned_before:
                continue  # a fault came between the order to begin with it and now
            self._forget_orders(self._connection.generation)
            on_begun()
            try:
                self._connection.body(self._inbox)
            except ExchangeClosed:
                logger.debug("%s left generation %d", self.id, self._connection.generation)
            except RoutingDivergence:
                raise
            except ExchangeError as error:
                on_lost(error, self._connection.generation)

    def _forget_orders(self, generation: int) -> None:
        """Drops orders to leave an earlier generation, whose exchanges ended by themselves."""
        for message in [self._inbox.get() for _ in range(self._inbox.qsize())]:
            if not (isinstance(message, CommitGeneration) and message.generation <= generation):
                self._inbox.put(message)

    def _trace(self, recording: bool) -> None:
        now_ns, spans = time.perf_counter_ns(), self.spans.stop()
        if recording:
            self.spans.start()
        self._send(Traced(instance=self.id, now_ns=now_ns, spans=() if recording else spans))


def record_messages(spans: SpanLog, membership: Membership, exchanges: Sequence[Exchange]) -> None:
    """Where messages have a beginning and an end, they are recorded too."""

    def record(peer: int, way: str, num_bytes: int, stage: str, start_ns: int, end_ns: int) -> None:
        row, name = MESSAGE_ROWS[way], str(membership.instances[peer])
        spans.message(row, stage, name, num_bytes, start_ns, end_ns)

    for exchange in exchanges:
        if isinstance(exchange, NetworkExchange):
            exchange.record_to(record)


def use_threads(count: int) -> None:
    """Computes with so many threads from now on, in the thread that calls."""
    torch.set_num_threads(count)
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def closing_all(ports: Sequence[AttentionPort | ExpertPort]) -> Callable[[], None]:
    """What closes all the ports."""

    def close() -> None:
        for port in ports:
            port.close()

    return close
