"""The life of an expert instance's threads: one answers exchanges, one prepares later epochs."""

from __future__ import annotations

import queue
import threading

from janus_moe.experts.instance import ExpertInstance
from janus_moe.experts.preparing import EpochPreparer
from janus_moe.messages import Stop, ToWorker
from janus_moe.transport import ExpertPort


def serve(
    instance: ExpertInstance,
    preparer: EpochPreparer,
    port: ExpertPort,
    inbox: queue.SimpleQueue[ToWorker],
) -> None:
    """Runs until a Stop message; errors of the exchange propagate."""
    orders: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
    thread = threading.Thread(target=preparer.serve, args=(orders,), name="prepare", daemon=True)
    thread.start()
    try:
        _answer(instance, port, inbox, orders)
    finally:
        orders.put(Stop())
        thread.join()


def _answer(
    instance: ExpertInstance,
    port: ExpertPort,
    inbox: queue.SimpleQueue[ToWorker],
    orders: queue.SimpleQueue[ToWorker],
) -> None:
    while True:
        while not inbox.empty():
            message = inbox.get()
            if isinstance(message, Stop):
                return
            orders.put(message)
        instance.serve_once(port)
