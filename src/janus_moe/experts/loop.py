"""The life of an expert instance's thread: answer exchanges until told to stop."""

from __future__ import annotations

import queue

from janus_moe.experts.instance import ExpertInstance
from janus_moe.messages import Stop, ToWorker
from janus_moe.transport import ExpertPort


def serve(instance: ExpertInstance, port: ExpertPort, inbox: queue.SimpleQueue[ToWorker]) -> None:
    """Runs until a Stop message; errors of the exchange propagate."""
    while True:
        while not inbox.empty():
            if isinstance(inbox.get(), Stop):
                return
        instance.serve_once(port)
