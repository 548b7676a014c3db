"""How threads of an instance sleep until a neighbour does something: one bell, many sleepers.

The bell is an eventfd that neighbours ring too. One thread sleeps at the bell, the others until it
wakes them; `heard` grows with every ring, so that none is slept through by anybody. A neighbour
that ends, however it does, closes its socket, which wakes all as well. What the rings are about is
not known here.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping

from janus_moe.transport.network.channel import ChannelAborted

_RING = (1).to_bytes(8, "little")


class EventWaiter:
    """Owns the descriptors. bell: of this instance; bells, sockets: of its neighbours, by rank.

    spin_us: how long a wait looks again and again before it sleeps.
    """

    def __init__(
        self, bell: int, bells: Mapping[int, int], sockets: Mapping[int, socket.socket]
    ) -> None:
        self.spin_us = 0.0
        self.lost: set[int] = set()
        self.aborted = False
        self._bell = bell
        self._bells = dict(bells)
        self._sockets = dict(sockets)
        self._peers = {link.fileno(): peer for peer, link in sockets.items()}
        self._changed = threading.Condition()  # of all that follows
        self._heard = 0
        self._asleep = False  # somebody is at the bell
        self._open = True
        self._poll = select.poll()
        for descriptor in (bell, *self._peers):
            self._poll.register(descriptor, select.POLLIN)

    def ring(self, peer: int | None = None) -> None:
        """Wakes a neighbour, or the sleepers here."""
        with self._changed:
            if self._open:
                with contextlib.suppress(BlockingIOError):  # so full that it is heard
                    os.write(self._bell if peer is None else self._bells[peer], _RING)

    def wait(self, peer: int, ready: Callable[[], bool], timeout_s: float | None) -> None:
        """Blocks until `ready`, which turns true by something that `peer` does.

        Raises TimeoutError, ConnectionError when the peer has ended, ChannelAborted.
        """
        if ready() or self._spin(ready):
            return
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            heard = self._heard
            if ready():
                return
            if self.aborted:
                raise ChannelAborted
            if peer in self.lost:
                raise ConnectionError(f"rank {peer} left")
            left_s = None if end is None else end - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise TimeoutError(f"no message within {timeout_s} s")
            self.park(heard, left_s)

    def park(self, heard: int, timeout_s: float | None) -> int:
        """Sleeps until the bell rings, a neighbour ends or the timeout; not at all if anything was
        heard since `heard`. Returns what is heard now."""
        with self._changed:
            if self._heard != heard or not self._open:
                return self._heard
            if self._asleep:
                self._changed.wait(timeout_s)
                return self._heard
            self._asleep = True
        found: list[tuple[int, int]] = []
        try:
            found = self._poll.poll(None if timeout_s is None else 1000.0 * timeout_s)
        finally:
            with self._changed:
                for descriptor, _ in found:
                    self._hear(descriptor)
                self._asleep = False
                self._heard = heard + 1
                self._changed.notify_all()
        return heard + 1

    def bell(self) -> WaiterWakeup:
        return WaiterWakeup(self)

    def abort(self) -> None:
        """Ends all waits, now and later, with ChannelAborted; neighbours see this end as gone."""
        self.aborted = True
        for link in self._sockets.values():
            with contextlib.suppress(OSError):  # the peer was first, or it is closed
                link.shutdown(socket.SHUT_RDWR)
        self.ring()

    def close(self) -> None:
        """Aborts, and gives the descriptors back."""
        self.abort()
        with self._changed:
            self._changed.wait_for(lambda: not self._asleep, timeout=1.0)
            if self._open:
                self._open = False
                for link in self._sockets.values():
                    link.close()
                for descriptor in (self._bell, *self._bells.values()):
                    os.close(descriptor)

    def _hear(self, descriptor: int) -> None:
        if descriptor == self._bell:
            with contextlib.suppress(BlockingIOError):
                os.read(descriptor, len(_RING))
        else:
            self._poll.unregister(descriptor)
            self.lost.add(self._peers[descriptor])

    def _spin(self, ready: Callable[[], bool]) -> bool:
        if self.spin_us <= 0:
            return False
        end = time.perf_counter() + self.spin_us * 1e-6
        while time.perf_counter() < end:
            if ready():
                return True
        return False


class WaiterWakeup:
    """A `Wakeup` that neighbours ring too; for one thread to park at."""

    def __init__(self, sleepers: EventWaiter) -> None:
        self._sleepers = sleepers
        self._heard = 0

    def ring(self) -> None:
        self._sleepers.ring()

    def park(self, timeout_s: float | None) -> None:
        self._heard = self._sleepers.park(self._heard, timeout_s)
