"""How instances of one host get hold of each other's memory: descriptors over unix sockets.

Each listens at an abstract address (https://man7.org/linux/man-pages/man7/unix.7.html) with a
random name, which its neighbours learn through the `Rendezvous`; the lower rank connects. Both
prove that they know the other's secret, and the kernel says under whose name they run. Whoever
else connects is dropped. Nothing has a name in the file system, and the address is gone as soon as
all neighbours are there. What the descriptors are for is not known here (`host_peers`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import logging
import os
import secrets
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from janus_moe.errors import ExchangeError, JanusError
from janus_moe.spec import Spec
from janus_moe.transport.exchange_plans.topology import Topology
from janus_moe.transport.host_memory.host_peers import (
    Connection,
    HostPeers,
    NoHostPeers,
    table_bytes,
)
from janus_moe.transport.network.rendezvous import Rendezvous

_SECRET_BYTES = 32
_HELLO = struct.Struct(f"<{_SECRET_BYTES}sq")  # secret of whom it is for, rank of the sender
_CREDENTIALS = struct.Struct("<iII")  # `struct ucred`: process, user, group
_NUM_FDS = 2
_MOST_STRANGERS = 64
_RETRY_S = 0.01

logger = logging.getLogger(__name__)


class Advertisement(Spec, frozen=True):
    """What neighbours learn of an instance. place: equal where memory can be shared, "" where
    this is not known. name: of the address it listens at."""

    place: str = ""
    name: str = ""
    secret: bytes = b""


def connect_host_peers(
    rank: int, topology: Topology, rendezvous: Rendezvous, timeout_s: float
) -> HostPeers | NoHostPeers:
    """The other instances of this rank's node that share memory with it; blocks until all of them
    do the same.

    Instances that cannot (another system, network namespace or user) are left out, on both sides,
    and logged. Raises ExchangeError when somebody is missing after `timeout_s`.
    """
    nodes = topology.nodes
    mates = [mate for mate in range(len(nodes)) if nodes[mate] == nodes[rank] and mate != rank]
    if not mates:
        return NoHostPeers()
    deadline = time.monotonic() + timeout_s
    with contextlib.ExitStack() as stack:
        door = stack.enter_context(_door(rank, place()))
        rendezvous.put(f"near/{rank}", msgspec.msgpack.encode(door.card))
        cards = {mate: _card(rendezvous, rank, mate, timeout_s) for mate in mates}
        far = [mate for mate in mates if not cards[mate].place or cards[mate].place != door.place]
        if far or not door.place:
            logger.warning(
                "rank %d cannot share memory with rank %s of its host (another system, network "
                "namespace or user): messages between them go over TCP",
                rank,
                ", ".join(map(str, far)),
            )
        host_peers = [mate for mate in mates if mate not in far]
        if not host_peers:
            return NoHostPeers()
        held = stack.enter_context(contextlib.ExitStack())  # given back when something fails
        file, wakeup = _own(len(nodes))
        held.callback(os.close, file)
        held.callback(os.close, wakeup)
        try:
            for mate in host_peers:
                if mate > rank:
                    door.knock(mate, cards[mate], (file, wakeup), deadline)
            door.let_in(
                [mate for mate in host_peers if mate < rank], cards, (file, wakeup), deadline
            )
            door.hear_answers(deadline)
        except (OSError, TimeoutError) as error:
            missing = ", ".join(str(mate) for mate in host_peers if mate not in door.met)
            raise ExchangeError(
                f"rank {rank} did not get hold of the memory of rank {missing} of its host within "
                f"{timeout_s:g} s: {error}"
            ) from error
        held.pop_all()
        return HostPeers(rank, len(nodes), file, wakeup, door.take())


def place() -> str:
    """Equal in processes that can reach each other's abstract sockets and trust each other: one
    run of one system, one network namespace, one user."""
    needed = ((os, "memfd_create"), (os, "eventfd"), (socket, "SO_PEERCRED"))
    if not all(hasattr(module, name) for module, name in needed):
        return ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        network = Path("/proc/self/ns/net").stat()
    except OSError:
        return ""
    return f"{boot} {network.st_dev}:{network.st_ino} {os.geteuid()}"


def _card(rendezvous: Rendezvous, rank: int, mate: int, timeout_s: float) -> Advertisement:
    try:
        return msgspec.msgpack.decode(rendezvous.get(f"near/{mate}", timeout_s), type=Advertisement)
    except (TimeoutError, msgspec.DecodeError, JanusError) as error:
        raise ExchangeError(f"rank {rank} does not know where rank {mate} is: {error}") from error


def _own(num_ranks: int) -> tuple[int, int]:
    """File and bell of an instance."""
    file = os.memfd_create("janus-near", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(file, table_bytes(num_ranks))
        # Who maps memory that a neighbour takes away again would be killed.
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return file, os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    except OSError:
        os.close(file)
        raise


@contextlib.contextmanager
def _door(rank: int, where: str) -> Iterator[_Door]:
    """Listens where neighbours can be; closes what was not taken."""
    door = _Door(rank, where)
    try:
        yield door
    finally:
        door.close()


class _Door:
    """One instance's address, and the neighbours that it has met."""

    def __init__(self, rank: int, where: str) -> None:
        self.place = where
        self.met: dict[int, Connection] = {}
        self._rank = rank
        self._knocked: dict[int, socket.socket] = {}
        self._visitors: dict[int, socket.socket] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        name = f"janus-{secrets.token_hex(16)}" if where else ""
        if where:
            self._listener.bind(f"\0{name}")
            self._listener.listen(_MOST_STRANGERS)
            self._listener.setblocking(False)
        self.card = Advertisement(place=where, name=name, secret=secrets.token_bytes(_SECRET_BYTES))

    def knock(self, mate: int, card: Advertisement, own: tuple[int, int], deadline: float) -> None:
        """Connects to a neighbour and says who is there."""
        self._knocked[mate] = caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        while True:
            caller.settimeout(_left(deadline))
            try:
                caller.connect(f"\0{card.name}")
                break
            except BlockingIOError:  # strangers are before us
                time.sleep(_RETRY_S)
        socket.send_fds(caller, [_HELLO.pack(card.secret, self._rank)], own)

    def let_in(
        self,
        mates: list[int],
        cards: dict[int, Advertisement],
        own: tuple[int, int],
        deadline: float,
    ) -> None:
        """Waits for neighbours that connect, and answers them; drops everybody else."""
        awaited = set(mates)
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while awaited:
            for descriptor, _ in poll.poll(1000 * _left(deadline)):
                if descriptor == self._listener.fileno():
                    self._admit(poll)
                    continue
                visitor = self._visitors.pop(descriptor)
                poll.unregister(descriptor)
                mate = self._recognise(visitor, awaited)
                if mate is not None:
                    socket.send_fds(visitor, [_HELLO.pack(cards[mate].secret, self._rank)], own)
                    awaited.discard(mate)

    def hear_answers(self, deadline: float) -> None:
        """Of those that this instance has connected to."""
        for mate, caller in list(self._knocked.items()):
            caller.settimeout(_left(deadline))
            del self._knocked[mate]
            if self._recognise(caller, {mate}) is None:
                raise ConnectionError(f"a wrong answer from rank {mate}")

    def take(self) -> dict[int, Connection]:
        """Those met, which are the caller's from here on."""
        met, self.met = self.met, {}
        return met

    def close(self) -> None:
        for connection in self.met.values():
            connection.close()
        for waiting in (*self._knocked.values(), *self._visitors.values(), self._listener):
            waiting.close()

    def _admit(self, poll: select.poll) -> None:
        with contextlib.suppress(OSError):  # it left again
            visitor, _ = self._listener.accept()
            visitor.setblocking(False)
            self._visitors[visitor.fileno()] = visitor
            poll.register(visitor, select.POLLIN)
        if len(self._visitors) > _MOST_STRANGERS:  # who said nothing for longest
            oldest = next(iter(self._visitors))
            poll.unregister(oldest)
            self._visitors.pop(oldest).close()

    def _recognise(self, caller: socket.socket, awaited: set[int]) -> int | None:
        """Rank of a neighbour that has said hello; None for a stranger, who is dropped."""
        received: list[int] = []
        try:
            hello, received, _, _ = socket.recv_fds(
                caller, _HELLO.size + 1, _NUM_FDS, socket.MSG_CMSG_CLOEXEC
            )
            size = _CREDENTIALS.size
            user = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            known = len(hello) == _HELLO.size and len(received) == _NUM_FDS
            if known and _CREDENTIALS.unpack(user)[1] == os.geteuid():
                secret, mate = _HELLO.unpack(hello)
                if hmac.compare_digest(secret, self.card.secret) and mate in awaited:
                    caller.setblocking(False)
                    self.met[mate] = Connection(caller, *received)
                    return int(mate)
        except OSError as error:
            logger.debug("rank %d: somebody at the door left: %s", self._rank, error)
        for descriptor in received:
            os.close(descriptor)
        caller.close()
        return None


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("nobody came")
    return left
