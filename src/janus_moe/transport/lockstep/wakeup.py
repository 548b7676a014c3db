"""Doorbells: how a blocked instance is woken. One per instance; anybody rings, one thread parks.

A poster stores its news first and rings second; a waiter clears the bell before it looks again.
So no news is ever slept through, and a bell that rings for nothing only costs another look.
This module does not know what the news are.
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
        """Blocks until rung or the timeout (None: no limit), and clears the bell."""
        ...


class ThreadWakeup:
    """A bell among threads of one process."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def notify(self) -> None:
        self._event.set()

    def wait(self, timeout_s: float | None) -> None:
        self._event.wait(timeout_s)
        self._event.clear()


class EventFdWakeup:
    """A bell among processes: an eventfd, or a pipe where the system has none.

    Descriptors are non-blocking and travel by inheritance; nothing has a name in the system.
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd
        self._open = True
        self._poll = select.poll()
        self._poll.register(read_fd, select.POLLIN)

    @classmethod
    def create(cls) -> EventFdWakeup:
        if hasattr(os, "eventfd"):
            fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            return cls(fd, fd)
        read_fd, write_fd = os.pipe()
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        return cls(read_fd, write_fd)

    @property
    def fds(self) -> tuple[int, ...]:
        return tuple({self.read_fd, self.write_fd})

    def notify(self) -> None:
        if not self._open:
            return
        try:
            os.write(self.write_fd, _ONE)
        except BlockingIOError:
            return  # rung so often that it is full: it will be heard

    def wait(self, timeout_s: float | None) -> None:
        if self._poll.poll(None if timeout_s is None else timeout_s * 1000.0):
            try:
                os.read(self.read_fd, 4096)
            except BlockingIOError:
                return

    def close(self) -> None:
        """Closes the descriptors of this process; later rings do nothing."""
        if self._open:
            self._open = False
            for fd in self.fds:
                os.close(fd)
