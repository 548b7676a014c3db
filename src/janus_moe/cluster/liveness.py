"""When a worker process is to be taken for lost although it lives: the rule, without a clock.

What is judged is what the kernel says of the process. A process that the kernel has stopped can do
nothing until it is continued. A process that waits for a core, a disk or a peer is not lost.

This module does not know how observations are made, what is done about a lost worker, or what
workers compute.
"""

from __future__ import annotations

from dataclasses import dataclass

STOPPED_S = 0.8
"""How long a process is seen stopped before it is lost; a debugger that only looks is quicker."""
LOOK_S = 0.5
"""How often a worker is looked at that gives no reason to suspect it."""
SUSPECT_LOOK_S = 0.1
"""How often the others are looked at."""
STOPPED = frozenset("Tt")
"""States of a process in /proc/PID/stat: stopped by a signal, stopped by a debugger."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What is seen of one worker at one moment.

    at_s: seconds of any one clock.
    state: of the process, a letter as in /proc/PID/stat.
    """

    at_s: float
    state: str


class LivenessRule:
    """Judges one worker by the observations of it, in their order.

    Time in which nothing was observed does not count: an observer that was itself kept from its
    work learns nothing from its own absence.
    """

    def __init__(self) -> None:
        self._last: Observation | None = None
        self._stopped_s = 0.0

    @property
    def suspects(self) -> bool:
        """Whether the next observation should come soon."""
        return self._last is not None and self._last.state in STOPPED

    def judge(self, seen: Observation) -> str | None:
        """Why the worker is lost, as the rest of a sentence about it; None while it is not."""
        last, self._last = self._last, seen
        if last is None or not {last.state, seen.state} <= STOPPED:
            self._stopped_s = 0.0
            return None
        self._stopped_s += min(seen.at_s - last.at_s, 2 * SUSPECT_LOOK_S)
        if self._stopped_s < STOPPED_S:
            return None
        return "was stopped by a signal or a debugger and did not go on"
