"""The life of an expert instance's threads: one per exchange answers, one prepares later epochs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

from janus_moe.errors import ExchangeClosed
from janus_moe.experts.epoch_loader import EpochLoader
from janus_moe.experts.instance import ExpertInstance
from janus_moe.messages import Stop, ToWorker
from janus_moe.transport import ExpertPort


def serve(
    instance: ExpertInstance,
    preparer: EpochLoader,
    ports: Sequence[ExpertPort],
    inbox: queue.SimpleQueue[ToWorker],
) -> None:
    """Runs until a Stop message; errors of the exchanges propagate. Whoever puts a message in the
    inbox wakes the first port."""
    orders: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
    first, *others = ports
    besides = [_Besides(instance, port, first) for port in others]
    thread = threading.Thread(target=preparer.serve, args=(orders,), name="prepare", daemon=True)
    thread.start()
    try:
        _answer(instance, first, inbox, orders, besides)
    finally:
        for one in besides:
            one.stop()
        orders.put(Stop())
        thread.join()


def _answer(
    instance: ExpertInstance,
    port: ExpertPort,
    inbox: queue.SimpleQueue[ToWorker],
    orders: queue.SimpleQueue[ToWorker],
    besides: Sequence[_Besides],
) -> None:
    while True:
        while not inbox.empty():
            message = inbox.get()
            if isinstance(message, Stop):
                return
            orders.put(message)
        for one in besides:
            one.check()
        instance.serve_once(port)


class _Besides:
    """A thread that answers the exchange of further micro-batches beside the first one's."""

    def __init__(self, instance: ExpertInstance, port: ExpertPort, first: ExpertPort) -> None:
        self._instance = instance
        self._port = port
        self._first = first
        self._error: BaseException | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._live, name="micro-batch", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises what has ended the thread."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        self._stopping = True
        self._port.close()
        self._thread.join()

    def _live(self) -> None:
        try:
            while not self._stopping:
                self._instance.serve_once(self._port)
        # Not handled here: the thread of the first exchange is woken and raises it.
        except BaseException as error:
            if not (self._stopping and isinstance(error, ExchangeClosed)):
                self._error = error
                self._first.wake()
