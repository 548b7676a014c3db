"""When a worker process is to be taken for lost although it lives: the rule, without a clock.

Three things are judged. A process that the kernel has stopped can do nothing until it is continued.
A worker without heartbeats runs none of its threads. A thread that computes the same step for much
longer than steps of its size have lately taken will not end it. A worker that waits for a peer, a
core or a compiler is not lost.

This module does not know how observations are made, what is done about a lost worker, or what
workers compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from janus_moe.cluster.heartbeat_page import Phase, ThreadActivity

STOPPED_S = 0.8
"""How long a process is seen stopped before it is lost; a debugger that only looks is quicker."""
SILENT_S = 2.0
"""How long a worker has no heartbeat before it is lost; code that keeps the interpreter is quicker.
"""
LEAST_LIMIT_S = 1.0
"""What a thread gets for a step of any size."""
MARGIN = 2.0
"""How many times the longest step of its size a thread gets."""
LATELY_S = 600.0
"""How long a step is remembered as the longest of its size."""
LOOK_S = 0.5
"""How often a worker is looked at that gives no reason to suspect it, and how often it beats."""
SUSPECT_LOOK_S = 0.1
"""How often the others are looked at, and how often a worker beats that is in a step."""
SUSPECT_S = 0.2
"""How long a thread computes the same step before it is looked at more often."""
STOPPED = frozenset("Tt")
"""States of a process in /proc/PID/stat: stopped by a signal, stopped by a debugger."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What is seen of one worker at one moment.

    at_s: seconds of any one clock.
    state: of the process, a letter as in /proc/PID/stat.
    beats: heartbeats so far; 0 before it serves, and then nothing but its state is judged.
    activities: what its serving threads are at, always in the same order.
    queued_s: thread id -> how long it has waited for a core in its life; {} where nothing is
        suspected.
    """

    at_s: float
    state: str
    beats: int = 0
    activities: tuple[ThreadActivity, ...] = ()
    queued_s: Mapping[int, float] = field(default_factory=dict)


@dataclass(slots=True)
class LongestSteps:
    """How long steps of one thread have taken lately, by their size.

    A step is made of work for each token, for each pair of tokens, and of work that does not grow.
    So it takes at most as many times longer than another as its tokens or its pairs are more.
    """

    _of_kind: dict[tuple[int, int], tuple[float, float, ThreadActivity]] = field(
        default_factory=dict
    )

    def add(self, step: ThreadActivity, seconds: float, at_s: float) -> None:
        """A step has ended after so many seconds of computing."""
        known = self._of_kind.get(_kind(step))
        if known is None or seconds >= known[0] or at_s - known[1] > LATELY_S:
            self._of_kind[_kind(step)] = (seconds, at_s, step)

    def expected_s(self, step: ThreadActivity) -> float | None:
        """How long a step of this size takes at most; None when none has ended yet."""
        known = self._of_kind.get(_kind(step))
        others = self._of_kind.values() if known is None else (known,)
        return min((seconds * _times(step, other) for seconds, _, other in others), default=None)


def _kind(step: ThreadActivity) -> tuple[int, int]:
    """Steps of a kind differ by less than twice."""
    return step.tokens.bit_length(), step.pairs.bit_length()


def _times(step: ThreadActivity, other: ThreadActivity) -> float:
    """How many times the work of another step a step is at most."""
    tokens = step.tokens / max(1, other.tokens)
    pairs = step.pairs / max(1, other.pairs) if step.pairs else 0.0
    return max(1.0, tokens, pairs)


class _Thread:
    """What is known of one serving thread.

    queued_s: how long it has been kept from computing its step by a busy machine.
    """

    def __init__(self) -> None:
        self.activity: ThreadActivity | None = None
        self.queued_s = 0.0
        self.longest = LongestSteps()

    @property
    def computed_s(self) -> float:
        """How long it computes its step already, without the time that it was kept from it."""
        return 0.0 if self.activity is None else self.activity.computing_ms / 1000 - self.queued_s

    def see(self, activity: ThreadActivity, queued_s: float, at_s: float) -> None:
        last = self.activity
        if last is not None and last.step != activity.step:
            if last.step >= 0:
                self.longest.add(last, max(0.0, self.computed_s) + SUSPECT_LOOK_S, at_s)
            self.queued_s = 0.0
        elif activity.phase is Phase.COMPUTING:
            self.queued_s += queued_s
        self.activity = activity

    def judge(self, hang_timeout_s: float) -> str | None:
        activity = self.activity
        if activity is None or activity.phase is not Phase.COMPUTING:
            return None
        expected_s = self.longest.expected_s(activity)
        limit_s = hang_timeout_s
        if expected_s is not None:
            limit_s = min(limit_s, max(LEAST_LIMIT_S, MARGIN * expected_s))
        if self.computed_s <= limit_s:
            return None
        return (
            f"stood still for {self.computed_s:.1f} s in step {activity.step} of "
            f"{activity.tokens} tokens (allowed were {limit_s:.1f} s, --hang-timeout at most)"
        )


class LivenessRule:
    """Judges one worker by the observations of it, in their order.

    Time in which nothing was observed does not count: an observer that was itself kept from its
    work learns nothing from its own absence. Time in which a thread of the worker waited for a core
    does not count either.

    hang_timeout_s: how long a thread may compute a step of which nothing is known.
    """

    def __init__(self, hang_timeout_s: float) -> None:
        self._hang_timeout_s = hang_timeout_s
        self._last: Observation | None = None
        self._stopped_s = 0.0
        self._silent_s = 0.0
        self._threads: list[_Thread] = []

    @property
    def suspects(self) -> bool:
        """Whether the next observation should come soon, with `queued_s`."""
        last = self._last
        return last is not None and (
            last.state in STOPPED
            or self._silent_s > 0
            or any(activity.computing_ms >= 1000 * SUSPECT_S for activity in last.activities)
        )

    def judge(self, seen: Observation) -> str | None:
        """Why the worker is lost, as the rest of a sentence about it; None while it is not."""
        passed_s, queued_s = self._passed(seen)
        last, self._last = self._last or seen, seen
        if self._has_stopped(last, seen, passed_s):
            return "was stopped by a signal or a debugger and did not go on"
        if self._is_silent(last, seen, passed_s - queued_s):
            return f"had no heartbeat for {self._silent_s:.1f} s"
        while len(self._threads) < len(seen.activities):
            self._threads.append(_Thread())
        for thread, activity in zip(self._threads, seen.activities, strict=False):
            thread.see(activity, queued_s, seen.at_s)
        reasons = (thread.judge(self._hang_timeout_s) for thread in self._threads)
        return next(filter(None, reasons), None)

    def _passed(self, seen: Observation) -> tuple[float, float]:
        """Seconds since the last observation, and how many of them some thread had no core."""
        if self._last is None:
            return 0.0, 0.0
        passed_s = min(seen.at_s - self._last.at_s, LOOK_S + SUSPECT_LOOK_S)
        before = self._last.queued_s
        waits = (now - before[thread] for thread, now in seen.queued_s.items() if thread in before)
        return passed_s, min(passed_s, max(waits, default=0.0))

    def _has_stopped(self, last: Observation, seen: Observation, passed_s: float) -> bool:
        stopped = {last.state, seen.state} <= STOPPED
        self._stopped_s = self._stopped_s + min(passed_s, 2 * SUSPECT_LOOK_S) if stopped else 0.0
        return self._stopped_s >= STOPPED_S

    def _is_silent(self, last: Observation, seen: Observation, passed_s: float) -> bool:
        silent = 0 < seen.beats == last.beats and seen.state not in STOPPED
        self._silent_s = self._silent_s + passed_s if silent else 0.0
        return self._silent_s >= SILENT_S
