"""A worker process's end of the control channel: one thread owns the socket, others use queues.

It also watches the lifeline, a pipe whose other end only the process that started the worker holds,
and in a cluster the connection: when either is gone, however it went, the worker leaves. So this
thread never blocks on an engine that does not read; those who send wait instead. This module knows
nothing of models.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

import msgspec
import zmq

from janus_moe.cluster.hosts.secret import MAX_BYTES, CurveKeys
from janus_moe.cluster.worker.bootstrap import Bootstrap
from janus_moe.messages import (
    Failed,
    FromWorker,
    Stop,
    StorePut,
    ToWorker,
    decode_to_worker,
    encode,
)
from janus_moe.transport.network.rendezvous import MemoryRendezvous

LINGER_MS = 2000
"""How long the last messages may take to leave when the worker ends."""
OUTBOX_MESSAGES = 4096
"""Messages that wait for an engine that does not read, beside some 2,000 in ZeroMQ's own queues."""
ROOM_S = 0.005
"""How often a sender looks whether a full outbox has room again."""
HANDSHAKE_MS = 5000
LOST = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class WorkerChannel:
    """Messages to and from the engine; also a `Rendezvous` among all workers of the run.

    All but the constructor may be used from any thread.
    """

    def __init__(self, bootstrap: Bootstrap, on_orphaned: Callable[[], None]) -> None:
        self.inbox: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
        self._name = bootstrap.name
        self._on_orphaned = on_orphaned
        self._outbox: deque[bytes] = deque()
        self._told_to_stop = False
        self._store = MemoryRendezvous()
        self._wake_read, self._wake_write = os.pipe()
        self._lifeline_fd = bootstrap.lifeline_fd
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, bootstrap.name.encode())
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._monitor: zmq.Socket[bytes] | None = None
        if bootstrap.secret_fd is not None:
            CurveKeys.derive(_read_all(bootstrap.secret_fd)).make_client(self._socket)
            self._socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
            self._socket.setsockopt(zmq.IPV6, 1)
            self._monitor = self._socket.get_monitor_socket(LOST)
        self._socket.connect(bootstrap.endpoint)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="worker channel", daemon=True)
        self._thread.start()

    def send(self, message: FromWorker) -> None:
        """Queues one message for the engine.

        While the outbox is full it blocks: nothing is dropped, and an instance that the engine does
        not listen to computes no further. The wait ends when the engine reads again, when it says
        stop, or with the process when the lifeline is cut. Last words do not wait.
        """
        if len(self._outbox) >= OUTBOX_MESSAGES and not isinstance(message, Failed):
            self._wait_for_room()
        self._outbox.append(encode(message))
        os.write(self._wake_write, b"\0")

    def put(self, key: str, value: bytes) -> None:
        """See `Rendezvous`; the engine passes it on to all workers."""
        self._store.put(key, value)
        self.send(StorePut(key=key, value=value))

    def get(self, key: str, timeout_s: float) -> bytes:
        """See `Rendezvous`."""
        return self._store.get(key, timeout_s)

    def close(self) -> None:
        """Sends what is queued, as far as the engine reads it in time, and closes the socket."""
        self._closing.set()
        os.write(self._wake_write, b"\0")
        self._thread.join(timeout=2 * LINGER_MS / 1000)

    def _run(self) -> None:
        poller = zmq.Poller()
        for source in (self._socket, self._wake_read, self._lifeline_fd):
            poller.register(source, zmq.POLLIN)
        if self._monitor is not None:
            poller.register(self._monitor, zmq.POLLIN)
        while not self._closing.is_set():
            waiting = zmq.POLLOUT if self._outbox else 0
            poller.register(self._socket, zmq.POLLIN | waiting)
            ready = dict(poller.poll())
            if self._lifeline_fd in ready:
                self._on_orphaned()
                break
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            self._send_queued()
            if ready.get(self._socket, 0) & zmq.POLLIN:
                self._receive()
            elif self._monitor in ready:  # and nothing is left to read
                self._on_orphaned()
                break
        else:
            self._linger()
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close()
        self._socket.close()
        self._context.term()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _send_queued(self) -> None:
        """Sends what the socket takes at once."""
        with contextlib.suppress(zmq.Again):
            while self._outbox:
                self._socket.send(self._outbox[0], zmq.NOBLOCK)
                self._outbox.popleft()

    def _linger(self) -> None:
        """Gives an engine that reads slowly a while to take the last messages."""
        end = time.monotonic() + LINGER_MS / 1000
        self._send_queued()
        while self._outbox and (left_s := end - time.monotonic()) > 0:
            self._socket.poll(round(left_s * 1000), zmq.POLLOUT)
            self._send_queued()

    def _wait_for_room(self) -> None:
        while len(self._outbox) >= OUTBOX_MESSAGES and not self._told_to_stop:
            time.sleep(ROOM_S)

    def _receive(self) -> None:
        try:
            message = decode_to_worker(self._socket.recv())
        except msgspec.DecodeError as error:
            self._outbox.append(
                encode(Failed(name=self._name, error=f"unreadable message: {error}"))
            )
            return
        if isinstance(message, StorePut):
            self._store.put(message.key, message.value)
            return
        if isinstance(message, Stop):
            self._told_to_stop = True
            self._store.close()
        self.inbox.put(message)


def _read_all(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as pipe:
        return pipe.read(MAX_BYTES)
