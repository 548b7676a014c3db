"""When lost instances may be started again: so many an hour, and slower while they keep failing.

The module is pure: times are arguments in seconds of one clock.
"""

from __future__ import annotations

from collections import Counter, deque

from janus_moe.spec import Pool

HOUR_S = 3600.0
MAX_DOUBLINGS = 6


def backoff_s(failures: int) -> float:
    """Pause after so many failures in a row: none, then 1 s, doubling up to 64 s."""
    return 2.0 ** min(failures - 1, MAX_DOUBLINGS) if failures else 0.0


class RestartBudget:
    """Counts losses that were not replaced yet, and restarts within the last hour.

    limit: restarts within an hour.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._restarts: deque[float] = deque()
        self._failures: Counter[Pool] = Counter()
        self._not_before_s: dict[Pool, float] = {}
        self._losses: Counter[Pool] = Counter()

    def lose(self, pool: Pool, now_s: float, *, before_ready: bool) -> None:
        """An instance was lost; one that never got ready makes the next start wait."""
        self._losses[pool] += 1
        if before_ready:
            self._failures[pool] += 1
            self._not_before_s[pool] = now_s + backoff_s(self._failures[pool])

    def succeed(self, pool: Pool) -> None:
        """A started instance got ready."""
        self._failures[pool] = 0
        self._not_before_s.pop(pool, None)

    def forgive(self) -> None:
        """What is missing may be started at once, whatever was lost and failed before."""
        self._losses.clear()
        self._failures.clear()
        self._not_before_s.clear()

    def left(self, now_s: float) -> int:
        """Restarts that may still happen now."""
        while self._restarts and self._restarts[0] <= now_s - HOUR_S:
            self._restarts.popleft()
        return self._limit - len(self._restarts)

    def due_s(self, pool: Pool, missing: int, now_s: float) -> float:
        """When the next of `missing` instances of a pool may be started; not after now: at once.

        Infinite when no restart is allowed at all. Losses beyond what is missing are forgotten.
        """
        self._losses[pool] = min(self._losses[pool], missing)
        due_s = self._not_before_s.get(pool, now_s)
        if self._losses[pool] == missing and self.left(now_s) <= 0:
            oldest_s = self._restarts[0] if self._restarts else float("inf")
            due_s = max(due_s, oldest_s + HOUR_S)
        return due_s

    def start(self, pool: Pool, missing: int, now_s: float) -> None:
        """One of `missing` instances is started; those that replace no loss come first."""
        if self._losses[pool] >= missing:
            self._losses[pool] = missing - 1
            self._restarts.append(now_s)
