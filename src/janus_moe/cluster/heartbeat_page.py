"""The page on which a worker says what its threads are at, for the process that started it.

It is anonymous memory that both have mapped: saying something costs no system call and wakes no
process, and it can be read whatever state the worker is in. The worker writes it now and then, in
its heartbeat. This module does not know what follows from it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

PAGE_BYTES = 4096
THREAD_WORDS = 5
FIRST_WORD = 2
MAX_THREADS = (PAGE_BYTES // 8 - FIRST_WORD) // THREAD_WORDS
_READS = 3


class Phase(IntEnum):
    """What a serving thread is at.

    OUTSIDE: in no step, and owes its peers nothing.
    WAITING: in a step, for a peer.
    COMPUTING: in a step, for itself.
    COMPILING: in a step, whose code is made or loaded first.
    """

    OUTSIDE = 0
    WAITING = 1
    COMPUTING = 2
    COMPILING = 3


class ThreadActivity(NamedTuple):
    """What one serving thread is at.

    step: of the exchange; the latest when it is in none, -1 before the first.
    tokens: in this step, of the instance; of an expert instance those of all.
    pairs: of tokens that attend to each other; 0 of an expert instance.
    computing_ms: how long it has been seen computing in this step.
    """

    phase: Phase
    step: int
    tokens: int
    pairs: int
    computing_ms: int


class HeartbeatPage:
    """descriptor: of the anonymous file, which the caller may close afterwards."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, PAGE_BYTES)
        self._words = memoryview(self._map).cast("q")

    @staticmethod
    def create() -> int:
        """A descriptor of a page on which nothing has been said yet."""
        descriptor = os.memfd_create("janus-heartbeat")
        os.truncate(descriptor, PAGE_BYTES)
        return descriptor

    def beat(self, activities: Sequence[ThreadActivity]) -> None:
        """Says what the threads are at. While it is written, the count of beats is odd."""
        words = self._words
        words[0] += 1
        words[1] = len(activities[:MAX_THREADS])
        for number, activity in enumerate(activities[:MAX_THREADS]):
            first = FIRST_WORD + number * THREAD_WORDS
            for word, value in enumerate(activity):
                words[first + word] = value
        words[0] += 1

    def read(self) -> tuple[int, tuple[ThreadActivity, ...]] | None:
        """(beats so far, activities); None while it is being written."""
        for _ in range(_READS):
            before = self._words[0]
            words = self._words.tolist()
            if before == self._words[0] and before % 2 == 0:
                ends = range(FIRST_WORD, FIRST_WORD + words[1] * THREAD_WORDS, THREAD_WORDS)
                activities = (words[first : first + THREAD_WORDS] for first in ends)
                return before // 2, tuple(
                    ThreadActivity(Phase(phase), *rest) for phase, *rest in activities
                )
        return None

    def close(self) -> None:
        self._words.release()
        self._map.close()
