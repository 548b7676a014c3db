"""The engine's end of the control channel: one socket for all workers and hosts.

On one host it is an abstract unix socket, which has no file that could be left behind and lets only
processes of the same user in. In a cluster it is a TCP port at which only those who know the secret
get a message in. What messages mean is the business of others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator
from zmq.utils.monitor import recv_monitor_message

from janus_moe.cluster.hosts.addresses import Address
from janus_moe.cluster.hosts.secret import CurveKeys, require_curve
from janus_moe.errors import ConfigError
from janus_moe.messages import Message, encode

logger = logging.getLogger(__name__)

HANDSHAKE_MS = 5000
"""What a connection gets to prove that it knows the secret."""
MAX_MESSAGE_BYTES = 64 * 2**20
BACKLOG = 512
LOG_EVERY_S = 10.0
REFUSALS = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
REFUSALS |= zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


class ControlChannel:
    """endpoint: where workers of this host connect. secret: what they must know, if anything."""

    def __init__(self, endpoint: str, secret: bytes | None = None) -> None:
        self.endpoint = endpoint
        self.secret = secret
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._authenticator: AsyncioAuthenticator | None = None
        self._monitor: asyncio.Task[None] | None = None

    @classmethod
    def local(cls) -> ControlChannel:
        """For the processes of this host and user; the kernel says whose a connection is."""
        channel = cls(f"ipc://@janus-{os.getpid()}-{os.urandom(8).hex()}")
        channel._socket.setsockopt(zmq.IPC_FILTER_UID, os.geteuid())
        channel._socket.bind(channel.endpoint)
        return channel

    @classmethod
    def listen(cls, address: Address, secret: bytes, heartbeat_timeout_s: float) -> ControlChannel:
        """For other hosts. Must be called on the event loop; port 0 takes a free one.

        heartbeat_timeout_s: a peer that is silent for so long, or that hears nothing for so long,
        is cut off. ZeroMQ's own threads do this, so a busy interpreter is not taken for a dead one.
        """
        require_curve()
        channel = cls("", secret)
        keys = CurveKeys.derive(secret)
        channel._start_authenticator(keys)
        socket = channel._socket
        keys.make_server(socket)
        interval_ms = max(1, round(1000 * heartbeat_timeout_s / 5))
        socket.setsockopt(zmq.HEARTBEAT_IVL, interval_ms)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 4 * interval_ms)
        socket.setsockopt(zmq.HEARTBEAT_TTL, 5 * interval_ms)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.BACKLOG, BACKLOG)
        socket.setsockopt(zmq.IPV6, int(address.is_ipv6))
        channel._monitor = asyncio.create_task(_log_refusals(socket.get_monitor_socket(REFUSALS)))
        try:
            socket.bind(address.endpoint("*" if address.port == 0 else None))
        except zmq.ZMQError as error:
            channel.close()
            raise ConfigError(
                f"cannot listen for hosts on {address} ({error.strerror}); --cluster-listen takes "
                "an address of this host and a free port"
            ) from None
        channel.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        return channel

    def post(self, identity: bytes, message: Message) -> None:
        """Queues a message; the queues have no limit, so this is done at once or a ZMQError.

        Sent through the asyncio socket itself: a send may swallow the readiness of the socket's
        edge-triggered descriptor, and only the asyncio socket looks again after each send.
        """
        sent = asyncio.ensure_future(self._socket.send_multipart([identity, encode(message)]))
        if sent.done():
            sent.result()

    async def receive(self) -> tuple[bytes, bytes]:
        """(identity of the sender, content) of the next message."""
        while True:
            identity, *frames = await self._socket.recv_multipart()
            if len(frames) == 1:  # anything else is not one of ours
                return identity, frames[0]

    def close(self) -> None:
        """Frees everything; safe to call twice."""
        if self._socket.closed:
            return
        if self._monitor is not None:
            self._monitor.cancel()
            self._socket.disable_monitor()
        self._socket.close()
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.destroy(linger=0)

    def _start_authenticator(self, keys: CurveKeys) -> None:
        """ZAP (https://rfc.zeromq.org/spec/27/): exactly the client key of our secret may enter."""
        self._authenticator = AsyncioAuthenticator(self._context)
        self._authenticator.configure_curve_callback("*", _OnlyKey(keys.client_public))
        self._authenticator.start()


class _OnlyKey:
    def __init__(self, key: bytes) -> None:
        self._key = key

    def callback(self, domain: str, key: bytes) -> bool:
        return key == self._key


async def _log_refusals(monitor: zmq.asyncio.Socket) -> None:
    """One line now and then, however many knock."""
    refused, logged_at = 0, -LOG_EVERY_S
    with contextlib.suppress(zmq.ZMQError):
        while True:
            await recv_monitor_message(monitor)
            refused += 1
            if time.monotonic() - logged_at >= LOG_EVERY_S:
                logged_at = time.monotonic()
                logger.warning(
                    "refused %d connections to the control port: their secret differs from ours, "
                    "or they are not Janus",
                    refused,
                )
                refused = 0
