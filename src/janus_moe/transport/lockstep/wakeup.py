"""Wake-ups: how a blocked instance learns that it should look again.

Each instance has one. Any instance notifies, one thread waits. A notifier stores first what it has
to say and notifies second; a waiter clears the wake-up before it looks again. So nothing is ever
missed, and a notification without cause only costs another look. This module does not know what
the notifications are about.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from typing import Protocol

_ONE = (1).to_bytes(8, sys.byteorder)


class Wakeup(Protocol):
    def notify(self) -> None: ...

    def wait(self, timeout_s: float | None) -> None:
        """Blocks until notified or the timeout (None: no limit), and clears the wake-up."""
        ...


class ThreadWakeup:
    """A wake-up among threads of one process."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def notify(self) -> None:
        self._event.set()

    def wait(self, timeout_s: float | None) -> None:
        self._event.wait(timeout_s)
        self._event.clear()


class EventFdWakeup:
    """A wake-up among processes: an eventfd, which has no name in the system.

    descriptor: owned from here on, non-blocking; every process has its own of the same eventfd.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._open = True
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    @classmethod
    def create(cls) -> EventFdWakeup:
        return cls(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    def notify(self) -> None:
        if not self._open:
            return
        try:
            os.write(self.descriptor, _ONE)
        except BlockingIOError:
            return  # notified so often that the counter is full: the waiter will see it

    def wait(self, timeout_s: float | None) -> None:
        if self._poll.poll(None if timeout_s is None else timeout_s * 1000.0):
            try:
                os.read(self.descriptor, 8)
            except BlockingIOError:
                return

    def close(self) -> None:
        """Closes the descriptor of this process; later notifications do nothing."""
        if self._open:
            self._open = False
            os.close(self.descriptor)
