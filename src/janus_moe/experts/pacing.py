"""How fast an expert instance is filled beside the steps that it serves.

It does not know what is loaded.
"""

from __future__ import annotations

import threading
import time
from typing import Literal, Protocol

PaceName = Literal["steps", "full"]
"""steps  so many bytes between two steps, because steps go on meanwhile
full   as fast as possible, because all wait for it
"""

IDLE_AFTER_S = 0.1
"""Without a step for so long, loading need not wait for one."""

PIECES_PER_STEP = 6
"""Small pieces cost time too; so many of them between two steps at most."""

TABLES_S = 0.0002
"""Tables are made for so long before the next step is waited for: to be woken costs time, too."""

FULL_PIECE_BYTES = 8 << 20
"""Large enough that the cost of a piece vanishes, small enough to be given up soon."""


class Pace(Protocol):
    """What is called before every piece of work, and may wait."""

    @property
    def piece_bytes(self) -> int:
        """How large a piece may be."""
        ...

    def before_bytes(self, num_bytes: int) -> None:
        """So many bytes are going to be read or copied."""
        ...

    def before_table(self) -> None:
        """The tables of a layer are going to be made."""
        ...


class FullSpeed:
    """Never waits."""

    piece_bytes = FULL_PIECE_BYTES

    def before_bytes(self, num_bytes: int) -> None:
        pass

    def before_table(self) -> None:
        pass


class StepPace:
    """Once the work of a step is done, waits for the end of the next one; when none comes for a
    while it does not wait.

    stepped: set at the end of every step; cleared here.
    piece_bytes: bytes between two steps.
    """

    def __init__(self, stepped: threading.Event, piece_bytes: int) -> None:
        self.piece_bytes = piece_bytes
        self._stepped = stepped
        self._spent = 0
        self._idle = False
        self._woken_at = 0.0

    def before_bytes(self, num_bytes: int) -> None:
        counted = max(num_bytes, self.piece_bytes // PIECES_PER_STEP)
        if self._spent + counted > self.piece_bytes and self._spent:
            self._wait_for_step()
            self._spent = 0
        self._spent += counted

    def before_table(self) -> None:
        if time.perf_counter() - self._woken_at > TABLES_S:
            self._wait_for_step()

    def _wait_for_step(self) -> None:
        stepped = self._stepped.wait(0 if self._idle else IDLE_AFTER_S)
        self._stepped.clear()
        self._idle = not stepped
        self._woken_at = time.perf_counter()
