"""The life of an expert instance's threads: one per exchange answers, one prepares later epochs.

It does not know what an exchange carries, what the experts compute or how epochs are prepared.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

import torch

from janus_moe.errors import ExchangeClosed
from janus_moe.experts.epoch_loader import EpochLoader
from janus_moe.experts.instance import ExpertInstance
from janus_moe.messages import CommitGeneration, Stop, ToWorker
from janus_moe.transport import ExpertPort


def serve(
    instance: ExpertInstance,
    loader: EpochLoader,
    ports: Sequence[ExpertPort],
    inbox: queue.SimpleQueue[ToWorker],
) -> None:
    """Runs until a Stop message; errors of the exchanges propagate, their end is one of them.

    ports: an exchange for each micro-batch.
    inbox: messages; the sender of one wakes the first port afterwards.
    """
    orders: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
    first, *others = ports
    servers = [MicroBatchServer(instance, port, first) for port in others]
    thread = threading.Thread(target=loader.serve, args=(orders,), name="prepare", daemon=True)
    thread.start()
    try:
        with torch.inference_mode():  # once: entering it costs more than a lookup per layer
            _answer(instance, first, inbox, orders, servers)
    finally:
        for server in servers:
            server.stop()
        orders.put(Stop())
        thread.join()


class MicroBatchServer:
    """A thread that answers the exchange of further micro-batches beside the first one's.

    port: the exchange that it answers.
    first: the exchange whose thread is woken when this one fails, and calls `check`.
    """

    def __init__(self, instance: ExpertInstance, port: ExpertPort, first: ExpertPort) -> None:
        self._instance = instance
        self._port = port
        self._first = first
        self._error: BaseException | None = None
        self._stopping = False
        name = f"{threading.current_thread().name}, micro-batch"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises what has ended the thread."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Ends the thread; the port is closed afterwards."""
        self._stopping = True
        self._port.close()
        self._thread.join()

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while not self._stopping:
                    self._instance.serve_once(self._port)
        # Not handled here: the thread of the first exchange is woken and raises it.
        except BaseException as error:
            if not (self._stopping and isinstance(error, ExchangeClosed)):
                self._error = error
                self._first.wake()


def _answer(
    instance: ExpertInstance,
    port: ExpertPort,
    inbox: queue.SimpleQueue[ToWorker],
    orders: queue.SimpleQueue[ToWorker],
    servers: Sequence[MicroBatchServer],
) -> None:
    while True:
        while not inbox.empty():
            message = inbox.get()
            if isinstance(message, Stop):
                return
            if not isinstance(message, CommitGeneration):  # the attention instances end it
                orders.put(message)
        for server in servers:
            server.check()
        instance.serve_once(port)
