"""How instances of one host hand each other descriptors: authenticated abstract unix sockets.

An instance listens at an abstract address (https://man7.org/linux/man-pages/man7/unix.7.html) with
a random name, which its host peers learn through the `Rendezvous`, and others connect. Both sides
prove that they know the other's secret, and the kernel says under which user they run. Any other
process that connects is unauthenticated and is dropped. Nothing has a name in the file system, and
the address is gone as soon as the listener is closed. This module does not know what the
descriptors are for (`connecting`, `shared_memory`).
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import secrets
import select
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from janus_moe.errors import ExchangeError, JanusError
from janus_moe.spec import Spec
from janus_moe.transport.network.rendezvous import Rendezvous

_SECRET_BYTES = 32
_HELLO = struct.Struct(f"<{_SECRET_BYTES}sq")  # secret of the receiver, rank of the sender
_MORE = b"\0"  # the packet that carries further descriptors
_MAX_DESCRIPTORS = 250  # of one packet; the kernel's limit is SCM_MAX_FD = 253
_CREDENTIALS = struct.Struct("<iII")  # `struct ucred`: process, user, group
_MAX_UNAUTHENTICATED = 64
_RETRY_S = 0.01

logger = logging.getLogger(__name__)


class Advertisement(Spec, frozen=True):
    """What host peers learn of an instance before they connect.

    place: equal where memory can be shared; "" means that this is not known.
    name: of the abstract address that it listens at; "" means none.
    secret: what those who connect or answer must know.
    """

    place: str = ""
    name: str = ""
    secret: bytes = b""

    def publish(self, key: str, rendezvous: Rendezvous) -> None:
        rendezvous.put(key, msgspec.msgpack.encode(self))

    @classmethod
    def read(cls, key: str, rendezvous: Rendezvous, timeout_s: float) -> Advertisement:
        """Raises ExchangeError when it does not come, or is no advertisement."""
        try:
            return msgspec.msgpack.decode(rendezvous.get(key, timeout_s), type=cls)
        except (TimeoutError, msgspec.DecodeError, JanusError) as error:
            raise ExchangeError(f"no advertisement {key!r}: {error}") from error

    def shares_memory_with(self, other: Advertisement) -> bool:
        return bool(self.place) and self.place == other.place


@dataclass(frozen=True, slots=True)
class Met:
    """A host peer that has proved who it is.

    connection: to it; nothing else is sent there, so its end tells of the peer's.
    descriptors: what it has handed over; owned by the receiver.
    """

    connection: socket.socket
    descriptors: tuple[int, ...]

    def close(self) -> None:
        self.connection.close()
        for descriptor in self.descriptors:
            os.close(descriptor)


def current_place() -> str:
    """A text that is equal in processes that can reach each other's abstract sockets and trust
    each other: one run of one system, one network namespace, one user."""
    needed = ((os, "memfd_create"), (os, "eventfd"), (socket, "SO_PEERCRED"))
    if not all(hasattr(module, name) for module, name in needed):
        return ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        network = Path("/proc/self/ns/net").stat()
    except OSError:
        return ""
    return f"{boot} {network.st_dev}:{network.st_ino} {os.geteuid()}"


class Listener:
    """One instance's abstract address, and the host peers that it has met.

    A context manager: it closes what was not taken.

    rank: of this instance, as its host peers know it.
    advertisement: to be published.
    met: by rank.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.met: dict[int, Met] = {}
        self._unanswered: dict[int, socket.socket] = {}
        self._unauthenticated: dict[int, socket.socket] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        place = current_place()
        name = f"janus-{secrets.token_hex(16)}" if place else ""
        if place:
            self._socket.bind(f"\0{name}")
            self._socket.listen(_MAX_UNAUTHENTICATED)
            self._socket.setblocking(False)
        self.advertisement = Advertisement(place, name, secrets.token_bytes(_SECRET_BYTES))

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *error: object) -> None:
        for met in self.met.values():
            met.close()
        pending = (*self._unanswered.values(), *self._unauthenticated.values())
        for connection in (*pending, self._socket):
            connection.close()

    def connect(
        self, peer: int, advertisement: Advertisement, own: Sequence[int], deadline: float
    ) -> None:
        """Connects to a host peer and hands it descriptors; `receive_answers` hears of it."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._unanswered[peer] = connection
        while True:
            connection.settimeout(_left(deadline))
            try:
                connection.connect(f"\0{advertisement.name}")
                break
            except BlockingIOError:  # its queue is full
                time.sleep(_RETRY_S)
        _send(connection, advertisement.secret, self.rank, own)

    def accept(
        self,
        peers: Mapping[int, Advertisement],
        own: Sequence[int],
        num_descriptors: int,
        deadline: float,
    ) -> None:
        """Waits until all these peers have connected, and answers them with descriptors.

        own: handed to each of them.
        num_descriptors: that each of them hands over.
        """
        awaited = set(peers)
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while awaited:
            for descriptor, _ in poll.poll(1000 * _left(deadline)):
                if descriptor == self._socket.fileno():
                    self._accept_one(poll)
                    continue
                connection = self._unauthenticated.pop(descriptor)
                poll.unregister(descriptor)
                peer = self._authenticate(connection, awaited, num_descriptors, deadline)
                if peer is not None:
                    connection.settimeout(_left(deadline))
                    _send(connection, peers[peer].secret, self.rank, own)
                    connection.setblocking(False)
                    awaited.discard(peer)

    def receive_answers(self, num_descriptors: int, deadline: float) -> None:
        """Waits for the descriptors of all peers that this instance has connected to."""
        for peer, connection in list(self._unanswered.items()):
            connection.settimeout(_left(deadline))
            del self._unanswered[peer]
            if self._authenticate(connection, {peer}, num_descriptors, deadline) is None:
                raise ConnectionError(f"a wrong answer from rank {peer}")

    def take(self) -> dict[int, Met]:
        """The host peers by rank, which are the caller's from here on."""
        met, self.met = self.met, {}
        return met

    def _accept_one(self, poll: select.poll) -> None:
        with contextlib.suppress(OSError):  # it left again
            connection, _ = self._socket.accept()
            connection.setblocking(False)
            self._unauthenticated[connection.fileno()] = connection
            poll.register(connection, select.POLLIN)
        if len(self._unauthenticated) > _MAX_UNAUTHENTICATED:  # the one silent for longest goes
            oldest = next(iter(self._unauthenticated))
            poll.unregister(oldest)
            self._unauthenticated.pop(oldest).close()

    def _authenticate(
        self, connection: socket.socket, awaited: set[int], num_descriptors: int, deadline: float
    ) -> int | None:
        """Rank of a host peer that has proved who it is; None for any other, which is dropped."""
        received: list[int] = []
        try:
            peer = self._read_hello(connection, received, num_descriptors)
            if peer in awaited:
                while len(received) < num_descriptors:
                    connection.settimeout(_left(deadline))
                    received += _receive(connection, len(_MORE), num_descriptors - len(received))[1]
                connection.setblocking(False)
                self.met[peer] = Met(connection, tuple(received))
                return peer
        except OSError as error:
            logger.debug("rank %d: an unauthenticated process left: %s", self.rank, error)
        for descriptor in received:
            os.close(descriptor)
        connection.close()
        return None

    def _read_hello(
        self, connection: socket.socket, received: list[int], num_descriptors: int
    ) -> int:
        """Rank of the sender, -1 unless it proves that it was told this instance's secret."""
        hello, descriptors = _receive(connection, _HELLO.size, num_descriptors)
        received += descriptors
        size = _CREDENTIALS.size
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        if len(hello) != _HELLO.size or _CREDENTIALS.unpack(credentials)[1] != os.geteuid():
            return -1
        if len(descriptors) != min(num_descriptors, _MAX_DESCRIPTORS):
            return -1
        secret, peer = _HELLO.unpack(hello)
        return int(peer) if hmac.compare_digest(secret, self.advertisement.secret) else -1


def _send(connection: socket.socket, secret: bytes, rank: int, descriptors: Sequence[int]) -> None:
    packet = _HELLO.pack(secret, rank)
    socket.send_fds(connection, [packet], descriptors[:_MAX_DESCRIPTORS])
    for start in range(_MAX_DESCRIPTORS, len(descriptors), _MAX_DESCRIPTORS):
        socket.send_fds(connection, [_MORE], descriptors[start : start + _MAX_DESCRIPTORS])


def _receive(connection: socket.socket, num_bytes: int, most: int) -> tuple[bytes, list[int]]:
    """One packet of at most `num_bytes` (one more shows that it is longer), and descriptors."""
    most = min(most, _MAX_DESCRIPTORS)
    data, received, _, _ = socket.recv_fds(connection, num_bytes + 1, most, socket.MSG_CMSG_CLOEXEC)
    if not data:
        for descriptor in received:
            os.close(descriptor)
        raise ConnectionError("it closed the connection")
    return data, received


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer in time")
    return left
