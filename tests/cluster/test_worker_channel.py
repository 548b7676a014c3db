"""Claims about a worker whose engine does not read: its channel goes on watching, drops nothing,
holds a bounded number of messages, and makes those who send wait until the engine reads again."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

import pytest
import zmq

from janus_moe.cluster.worker import worker_channel
from janus_moe.cluster.worker.bootstrap import Bootstrap
from janus_moe.cluster.worker.worker_channel import WorkerChannel
from janus_moe.messages import Failed, Ready, Stop, decode_from_worker, encode

DEADLINE_S = 10.0
OUTBOX = 50
SENT = 5000  # with the padding, more than ZeroMQ and the kernel keep
PADDING = "." * 2000


class Engine:
    """The other end, which reads when told to; and a worker's channel to it."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.linger = 0
        endpoint = f"ipc://@janus-test-{os.getpid()}-{os.urandom(4).hex()}"
        self.socket.bind(endpoint)
        lifeline_read, self.lifeline = os.pipe()
        self.orphaned = threading.Event()
        bootstrap = Bootstrap(name="expert 0", endpoint=endpoint, lifeline_fd=lifeline_read)
        self.worker = WorkerChannel(bootstrap, on_orphaned=self.orphaned.set)
        self.sent = 0
        self.sender = threading.Thread(target=self._send, daemon=True)

    def start_sending(self) -> None:
        """Lets the worker send until it has to wait."""
        self.sender.start()
        before = -1
        while self.sent != before:
            before = self.sent
            time.sleep(0.2)

    def names(self) -> Iterator[str]:
        while self.socket.poll(round(DEADLINE_S * 1000)):
            message = decode_from_worker(self.socket.recv_multipart()[1])
            assert isinstance(message, Ready | Failed)
            yield message.name.removesuffix(PADDING)

    def _send(self) -> None:
        with contextlib.suppress(OSError):  # an orphaned worker's process would have ended
            for number in range(SENT):
                self.worker.send(Ready(name=f"{number}{PADDING}"))
                self.sent += 1


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr(worker_channel, "OUTBOX_MESSAGES", OUTBOX)
    made = Engine()
    yield made
    monkeypatch.undo()
    made.sender.join(DEADLINE_S)
    made.context.destroy(linger=0)


def test_senders_wait_for_an_engine_that_does_not_read_and_nothing_is_lost(engine: Engine) -> None:
    engine.start_sending()
    assert OUTBOX < engine.sent < SENT
    engine.worker.send(Failed(name="last words", error="x"))  # is never kept waiting
    names = engine.names()
    numbers = [next(names) for _ in range(SENT + 1)]
    numbers.remove("last words")
    assert numbers == [str(number) for number in range(SENT)]
    engine.worker.close()


def test_the_lifeline_is_heard_while_the_engine_does_not_read(engine: Engine) -> None:
    engine.start_sending()
    os.close(engine.lifeline)
    assert engine.orphaned.wait(1.0)


def test_a_stop_is_heard_while_the_engine_does_not_read(engine: Engine) -> None:
    """Who waits for room goes on then, so that the worker can leave."""
    engine.start_sending()
    engine.socket.send_multipart([b"expert 0", encode(Stop())])
    assert isinstance(engine.worker.inbox.get(timeout=DEADLINE_S), Stop)
    engine.sender.join(DEADLINE_S)
    assert not engine.sender.is_alive()
    start = time.monotonic()
    engine.worker.close()
    assert time.monotonic() - start < DEADLINE_S
