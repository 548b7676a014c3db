"""A host's end of the control channel: getting in, and noticing when the engine is gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from janus_moe.cluster.hosts.addresses import Address
from janus_moe.cluster.hosts.messages import FromHost, ToHost, decode_to_host
from janus_moe.cluster.hosts.pool import host_identity
from janus_moe.cluster.hosts.secret import CurveKeys
from janus_moe.errors import HostLost
from janus_moe.messages import encode

RETRY_S = 0.5
REPORT_EVERY_S = 5.0
ATTEMPT_MS = 5000
LAST_MESSAGES_S = 0.2
LINGER_MS = 1000

SECRET_DIFFERS = "refused us: the secret differs from the engine's"
NOT_JANUS = "answers, but is no Janus engine with hosts"
NO_ANSWER = "takes connections but does not answer"
UNREACHABLE = "cannot be reached"


class EngineLink:
    """A connection that has been authenticated. It is never renewed: messages could be missing.

    heartbeat_timeout_s: silence of the engine after which it is gone. The limit that its own
    heartbeats carry (their TTL) is not enough: ZeroMQ drops it with the next message that comes.
    connected: whether the other end has taken the connection.
    """

    def __init__(
        self, address: Address, name: str, keys: CurveKeys, heartbeat_timeout_s: float
    ) -> None:
        self.endpoint = address.endpoint()
        self.connected = False
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, host_identity(name))
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self._socket.setsockopt(zmq.CONNECT_TIMEOUT, ATTEMPT_MS)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, ATTEMPT_MS)
        self._socket.setsockopt(zmq.IPV6, 1)
        interval_ms = max(1, round(1000 * heartbeat_timeout_s / 5))
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, interval_ms)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 4 * interval_ms)
        keys.make_client(self._socket)
        self._monitor = self._socket.get_monitor_socket()
        self._disconnected: asyncio.Task[None] | None = None
        self._receiving: asyncio.Future[bytes] | None = None

    async def connect(self) -> str | None:
        """One attempt; why it failed, or None."""
        try:
            self._socket.connect(self.endpoint)
        except zmq.ZMQError as error:  # such as a name that no server knows
            return f"{UNREACHABLE} ({error.strerror})"
        refused, silent = False, False
        while True:
            event = await recv_monitor_message(self._monitor)
            match event["event"]:
                case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    self._disconnected = asyncio.create_task(self._until_disconnected())
                    return None
                case zmq.EVENT_CONNECTED:
                    self.connected = True
                case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL if event["value"] == zmq.EAGAIN:
                    silent = True
                case (
                    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
                    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
                    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
                ):
                    refused = True
                case zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED:
                    if not self.connected:
                        return UNREACHABLE
                    return SECRET_DIFFERS if refused else NO_ANSWER if silent else NOT_JANUS

    def send(self, message: FromHost) -> None:
        """Queues a message; where the engine is gone, `receive` says so."""
        sent = asyncio.ensure_future(self._socket.send(encode(message)))
        if sent.done():
            with contextlib.suppress(zmq.ZMQError):
                sent.result()

    async def receive(self) -> ToHost:
        """The next message; raises HostLost when the engine is gone and all is read."""
        assert self._disconnected is not None
        if self._receiving is None:
            self._receiving = asyncio.ensure_future(self._socket.recv())
        waits: set[asyncio.Future[Any]] = {self._receiving, self._disconnected}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not self._receiving.done():
            await asyncio.wait({self._receiving}, timeout=LAST_MESSAGES_S)
        if not self._receiving.done():
            raise HostLost(
                f"the engine at {self.endpoint} closed the connection or was silent for too long"
            )
        content, self._receiving = self._receiving.result(), None
        try:
            return decode_to_host(content)
        except msgspec.DecodeError as error:
            raise HostLost(
                f"the engine at {self.endpoint} sent an unreadable message: {error}"
            ) from None

    def close(self) -> None:
        for task in (self._disconnected, self._receiving):
            if task is not None:
                task.cancel()
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()

    async def _until_disconnected(self) -> None:
        while True:
            event = await recv_monitor_message(self._monitor)
            if event["event"] == zmq.EVENT_DISCONNECTED:
                return


async def join_engine(
    address: Address,
    name: str,
    keys: CurveKeys,
    timeout_s: float,
    heartbeat_timeout_s: float,
    say: Callable[[str], None],
) -> EngineLink:
    """Tries until it is in; a wrong secret is not tried again.

    Raises HostLost saying why not, after `timeout_s` at the latest.
    """
    loop = asyncio.get_running_loop()
    started, reported_at = loop.time(), -REPORT_EVERY_S
    problem: str | None = None
    while (left := started + timeout_s - loop.time()) > 0:
        link = EngineLink(address, name, keys, heartbeat_timeout_s)
        try:
            async with asyncio.timeout(left):
                found = await link.connect()
        except TimeoutError:
            link.close()
            problem = problem or (NO_ANSWER if link.connected else UNREACHABLE)
            break
        except BaseException:
            link.close()
            raise
        if found is None:
            return link
        link.close()
        problem = found
        if problem == SECRET_DIFFERS:
            break
        if loop.time() - reported_at >= REPORT_EVERY_S:
            reported_at = loop.time()
            say(f"{address} {problem}; trying for another {max(0.0, left):.0f} s")
        await asyncio.sleep(min(RETRY_S, max(0.0, left)))
    raise HostLost(f"{address} {_advice(problem or UNREACHABLE, timeout_s)}")


def _advice(problem: str, timeout_s: float) -> str:
    if problem == SECRET_DIFFERS:
        return f"{problem}; copy the engine's --cluster-secret-file to this host's --secret-file"
    if problem == NOT_JANUS:
        return f"{problem}; --join takes the address that `janus serve` prints"
    return (
        f"{problem} (tried for {timeout_s:g} s, --join-timeout); is `janus serve` up, and does a "
        "firewall let this port through?"
    )
