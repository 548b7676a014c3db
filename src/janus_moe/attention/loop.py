"""The life of an attention instance's thread: messages in, steps, messages out.

It takes part in every step its peers begin, with zero tokens when it has no work, and blocks when
no instance has any. It knows nothing of models or sockets.
"""

from __future__ import annotations

import queue
from collections.abc import Callable

from janus_moe.attention.instance import AttentionInstance
from janus_moe.messages import (
    AbortRequest,
    AddRequest,
    CommitGeneration,
    FromWorker,
    Stop,
    ToWorker,
    UseEpoch,
)


def serve(
    instance: AttentionInstance,
    inbox: queue.SimpleQueue[ToWorker],
    send: Callable[[FromWorker], None],
) -> None:
    """Runs until it is told to stop or to leave its exchanges; their errors propagate.

    inbox: messages; the sender of one wakes the instance afterwards.
    send: takes reports.
    """
    while _handle(instance, inbox, send):
        if instance.has_work:
            send(instance.step())
        elif not instance.follow():
            instance.wait()


def _handle(
    instance: AttentionInstance,
    inbox: queue.SimpleQueue[ToWorker],
    send: Callable[[FromWorker], None],
) -> bool:
    """Applies all waiting messages; False once told to stop or to leave."""
    told = False
    while not inbox.empty():
        match inbox.get():
            case AddRequest() as message:
                instance.add(message)
            case AbortRequest(request_id=request_id, admission=admission):
                instance.abort(request_id, admission)
                told = True
            case UseEpoch(epoch=epoch):
                instance.use_epoch(epoch)
                told = True
            case CommitGeneration():
                instance.leave()
                return False
            case Stop():
                return False
            case other:
                raise TypeError(f"{instance.id} cannot handle {type(other).__name__}")
    if told and not instance.has_work:
        send(instance.report())  # no step will tell that the cache is free, or of the epoch
    return True
