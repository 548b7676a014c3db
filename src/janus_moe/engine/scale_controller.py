"""What the engine's users see of pools that change while they serve."""

from __future__ import annotations

from typing import Any, Protocol


class ScaleController(Protocol):
    """Changes the pools of a running service."""

    def scale(self, attention: int | None, expert: int | None, drain_timeout_s: float) -> None:
        """Begins a change to these pool sizes; it goes on in the background.

        attention, expert: None leaves the size as it should be, also while an instance is missing.
        drain_timeout_s: how long attention instances that leave may finish their requests, seconds.

        Raises RequestError for impossible sizes, and ConflictError, which names the phase, while
        another change is under way or where the service cannot change.
        """
        ...

    def abort(self) -> None:
        """Gives up the change under way; ConflictError when there is none or it is too late."""
        ...

    def status(self) -> dict[str, Any]:
        """Members, generation, phase, progress, last error and history, ready for JSON."""
        ...
