"""How several threads of an instance wait until a host peer does something, at one wake-up.

The wake-up is an eventfd that host peers notify too. One thread polls it, the others sleep until it
wakes them; `notifications` grows with every notification, so that no thread misses one. A host peer
that ends, however it does, closes its connection, which wakes all threads as well. What the
notifications are about is not known here.
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

_ONE = (1).to_bytes(8, "little")


class EventWaiter:
    """Owns all descriptors that it is given.

    wakeup: of this instance.
    wakeups, sockets: of its host peers, by rank.
    spin_us: how long a wait looks again and again before it sleeps.
    lost: ranks of the host peers that have ended.
    """

    def __init__(
        self, wakeup: int, wakeups: Mapping[int, int], sockets: Mapping[int, socket.socket]
    ) -> None:
        self.spin_us = 0.0
        self.lost: set[int] = set()
        self.aborted = False
        self._wakeup = wakeup
        self._wakeups = dict(wakeups)
        self._sockets = dict(sockets)
        self._peers = {link.fileno(): peer for peer, link in sockets.items()}
        self._changed = threading.Condition()  # of all that follows
        self._notifications = 0
        self._polling = False  # one thread polls, and the others wait for it
        self._open = True
        self._poll = select.poll()
        for descriptor in (wakeup, *self._peers):
            self._poll.register(descriptor, select.POLLIN)

    def notify(self, peer: int | None = None) -> None:
        """Wakes a host peer, or the waiting threads here."""
        with self._changed:
            if self._open:
                with contextlib.suppress(
                    BlockingIOError
                ):  # the counter is full: the waiter will see it
                    os.write(self._wakeup if peer is None else self._wakeups[peer], _ONE)

    def wait(self, peer: int, ready: Callable[[], bool], timeout_s: float | None) -> None:
        """Blocks until `ready`, which turns true by something that `peer` does.

        Raises TimeoutError, ConnectionError when the peer has ended, ChannelAborted.
        """
        if ready() or self._spin(ready):
            return
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            notifications = self._notifications
            if ready():
                return
            if self.aborted:
                raise ChannelAborted
            if peer in self.lost:
                raise ConnectionError(f"rank {peer} left")
            left_s = None if end is None else end - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise TimeoutError(f"no message within {timeout_s} s")
            self.wait_for_event(notifications, left_s)

    def wait_for_event(self, notifications: int, timeout_s: float | None) -> int:
        """Sleeps until a notification, the end of a host peer or the timeout.

        Returns how many there were by then; at once if that is not `notifications` any more.
        """
        with self._changed:
            if self._notifications != notifications or not self._open:
                return self._notifications
            if self._polling:
                self._changed.wait(timeout_s)
                return self._notifications
            self._polling = True
        found: list[tuple[int, int]] = []
        try:
            found = self._poll.poll(None if timeout_s is None else 1000.0 * timeout_s)
        finally:
            with self._changed:
                for descriptor, _ in found:
                    self._on_event(descriptor)
                self._polling = False
                self._notifications = notifications + 1
                self._changed.notify_all()
        return notifications + 1

    def wakeup(self) -> WaiterWakeup:
        return WaiterWakeup(self)

    def abort(self) -> None:
        """Ends all waits, now and later, with ChannelAborted; host peers see this end as gone."""
        self.aborted = True
        for link in self._sockets.values():
            with contextlib.suppress(OSError):  # the peer was first, or it is closed
                link.shutdown(socket.SHUT_RDWR)
        self.notify()

    def close(self) -> None:
        """Aborts, and gives the descriptors back."""
        self.abort()
        with self._changed:
            self._changed.wait_for(lambda: not self._polling, timeout=1.0)
            if self._open:
                self._open = False
                for link in self._sockets.values():
                    link.close()
                for descriptor in (self._wakeup, *self._wakeups.values()):
                    os.close(descriptor)

    def _on_event(self, descriptor: int) -> None:
        if descriptor == self._wakeup:
            with contextlib.suppress(BlockingIOError):
                os.read(descriptor, len(_ONE))
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
    """A `Wakeup` that host peers notify too; one thread waits at it."""

    def __init__(self, waiter: EventWaiter) -> None:
        self._waiter = waiter
        self._notifications = 0

    def notify(self) -> None:
        self._waiter.notify()

    def wait(self, timeout_s: float | None) -> None:
        self._notifications = self._waiter.wait_for_event(self._notifications, timeout_s)
