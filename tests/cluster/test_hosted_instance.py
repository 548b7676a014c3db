"""Claims about an instance in its thread that is told of one generation after the other."""

from __future__ import annotations

import queue
import threading

from janus_moe.cluster.worker.hosted_instance import Connection, HostedInstance
from janus_moe.errors import ExchangeClosed
from janus_moe.messages import CommitGeneration, ToWorker
from janus_moe.spec import InstanceId
from janus_moe.tracing import SpanLog

DEADLINE_S = 10.0


def test_a_fault_after_a_commit_leads_straight_to_the_generation_without_it() -> None:
    entered: queue.SimpleQueue[int] = queue.SimpleQueue()
    instance = HostedInstance(
        InstanceId("attention", 0), _connects_to_nothing, SpanLog(), lambda message: None
    )
    connections = [_connection(generation, entered) for generation in range(3)]
    thread = threading.Thread(target=instance.serve, args=(lambda error, generation: None,))
    thread.start()
    try:
        instance.begin(connections[0], lambda: None)
        assert entered.get(timeout=DEADLINE_S) == 0
        instance.leave(CommitGeneration(generation=1, abandon=False))  # its step waits for a peer
        instance.begin(connections[1], lambda: None)
        instance.leave(CommitGeneration(generation=2, abandon=True))  # which has died
        instance.begin(connections[2], lambda: None)
        assert entered.get(timeout=DEADLINE_S) == 2
    finally:
        for connection in connections:
            connection.close()
        instance.stop()
        thread.join(DEADLINE_S)
    assert not thread.is_alive()


def _connects_to_nothing(*_: object) -> Connection:
    raise AssertionError("the test has its own connections")


def _connection(generation: int, entered: queue.SimpleQueue[int]) -> Connection:
    closed = threading.Event()

    def body(inbox: queue.SimpleQueue[ToWorker]) -> None:
        entered.put(generation)
        closed.wait(DEADLINE_S)
        raise ExchangeClosed("closed")

    return Connection(generation, wake=lambda: None, body=body, close=closed.set)
