"""Claims about when a worker that lives is lost: when it stays stopped, has no heartbeat, or
computes one step much longer than steps of its size; and not because it waits for a peer, a core or
a compiler, has more to do than before, or because its observer was away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import pytest

from janus_moe.cluster.heartbeat_page import Phase, ThreadActivity
from janus_moe.cluster.liveness import (
    LEAST_LIMIT_S,
    LOOK_S,
    SILENT_S,
    STOPPED_S,
    SUSPECT_LOOK_S,
    LivenessRule,
    Observation,
)

NOTICED_WITHIN_S = 1.5
HANG_TIMEOUT_S = 60.0
DECODE = (4, 4000)
PREFILL = (2048, 2 * 10**6)
COMPUTING, WAITING, COMPILING = Phase.COMPUTING, Phase.WAITING, Phase.COMPILING


def lost_after(states: str, every_s: float = SUSPECT_LOOK_S) -> tuple[int, str] | None:
    """After which of the observations, one a look, the worker is lost, and why."""
    rule = LivenessRule(HANG_TIMEOUT_S)
    for number, state in enumerate(states):
        if reason := rule.judge(Observation(1000.0 + number * every_s, state)):
            return number, reason
    return None


@pytest.mark.parametrize("state", ["T", "t"])
def test_a_process_that_stays_stopped_is_lost(state: str) -> None:
    lost = lost_after("S" + 100 * state)
    assert lost is not None
    number, reason = lost
    assert STOPPED_S <= (number - 1) * SUSPECT_LOOK_S <= NOTICED_WITHIN_S - LOOK_S
    assert reason.startswith("was stopped")


@pytest.mark.parametrize(
    "states",
    [
        200 * "R",  # computes, or waits for a core
        200 * "S",  # waits for a peer
        200 * "D",  # waits for a disk
        50 * "TTTTTTS",  # is stopped again and again, and goes on
        50 * "tR",  # a debugger looks
    ],
)
def test_others_are_not(states: str) -> None:
    assert lost_after(states) is None


def test_an_observer_that_was_away_has_learned_nothing() -> None:
    """It sees the worker stopped before and after, which says nothing of the time between."""
    assert lost_after("TT", every_s=3600.0) is None
    assert lost_after(20 * "T", every_s=3600.0) is not None


def test_what_is_stopped_is_looked_at_sooner() -> None:
    rule = LivenessRule(HANG_TIMEOUT_S)
    assert not rule.suspects
    for state, suspects in (("S", False), ("T", True), ("R", False)):
        rule.judge(Observation(0.0, state))
        assert rule.suspects == suspects


def a_step(
    number: int,
    seconds: float,
    size: tuple[int, int] = DECODE,
    phases: Sequence[Phase] = (COMPUTING,),
) -> Iterator[ThreadActivity]:
    """What a thread says in a step, look by look; its phases take turns."""
    computing_ms = 0
    for look in range(max(1, round(seconds / SUSPECT_LOOK_S))):
        phase = phases[look % len(phases)]
        yield ThreadActivity(phase, number, *size, computing_ms)
        computing_ms += round(1000 * SUSPECT_LOOK_S) * (phase is COMPUTING)


def judged(*steps: Iterator[ThreadActivity], queued: float = 0.0, state: str = "R") -> float | None:
    """How long the last step had been computed when the worker was lost; None if it was not.

    queued: share of the time in which the thread has no core.
    """
    rule, number = LivenessRule(HANG_TIMEOUT_S), count(1)
    for step in steps:
        for activity in step:
            beats = next(number)
            at_s = beats * SUSPECT_LOOK_S
            queued_s = {7: queued * at_s} if rule.suspects else {}
            if rule.judge(Observation(at_s, state, beats, (activity,), queued_s)) is not None:
                return activity.computing_ms / 1000
    return None


def test_a_thread_gets_twice_the_longest_step_of_its_size_and_a_second_at_least() -> None:
    for seconds in (0.0, 0.3, 1.0, 4.0):
        known = [a_step(number, seconds) for number in range(5)]
        lost_s = judged(*known, a_step(9, 100.0))
        assert lost_s is not None
        least = max(LEAST_LIMIT_S, 2 * seconds)
        assert least <= lost_s + 0.01 <= least + 0.25 + 2 * SUSPECT_LOOK_S


def test_a_step_of_a_size_that_is_not_known_gets_the_hang_timeout_at_most() -> None:
    assert judged(a_step(0, HANG_TIMEOUT_S)) is None
    lost_s = judged(a_step(0, 2 * HANG_TIMEOUT_S))
    assert lost_s == pytest.approx(HANG_TIMEOUT_S, abs=3 * SUSPECT_LOOK_S)
    assert judged(a_step(0, 0.1), a_step(1, 50.0, PREFILL)) is None


@pytest.mark.parametrize("factor", [1.5, 4, 30])
def test_a_step_may_take_longer_as_it_has_more_to_do(factor: float) -> None:
    """A long prompt after short ones, or a few new tokens after many that are cached."""
    tokens, pairs = PREFILL
    size = (tokens, round(factor * pairs))
    assert judged(a_step(0, 0.5, PREFILL), a_step(9, 0.5 * factor, size)) is None
    lost_s = judged(a_step(0, 0.5, PREFILL), a_step(9, 100.0, size))
    assert lost_s is not None and lost_s < 2 * (0.5 + 2 * SUSPECT_LOOK_S) * factor + 0.5


@pytest.mark.parametrize(
    "phases", [(WAITING,), (COMPILING,), (Phase.OUTSIDE,)], ids=lambda phases: phases[0].name
)
def test_a_thread_that_waits_or_compiles_does_not_stand_still(phases: tuple[Phase, ...]) -> None:
    assert judged(a_step(0, 0.1), a_step(1, 500.0, phases=phases)) is None


def test_waiting_for_a_peer_counts_for_nothing_and_computing_in_between_for_itself() -> None:
    assert judged(a_step(0, 0.1), a_step(1, 8.0, phases=(*9 * [WAITING], COMPUTING))) is None


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_thread_that_has_no_core_does_not_stand_still(share: float) -> None:
    step = a_step(1, 0.5 * LEAST_LIMIT_S / (1 - share))
    assert judged(a_step(0, 0.1), step, queued=share) is None
    assert judged(a_step(0, 0.1), a_step(1, 30.0), queued=share) is not None


def test_a_worker_without_heartbeats_is_lost_once_it_has_begun_to_beat() -> None:
    rule = LivenessRule(HANG_TIMEOUT_S)
    for number in range(1000):
        assert rule.judge(Observation(number * LOOK_S, "R")) is None  # it loads its weights
    start = 1000 * LOOK_S
    assert rule.judge(Observation(start, "R", beats=1)) is None
    looks = [start + LOOK_S * number for number in range(1, 100)]
    lost = [at for at in looks if rule.judge(Observation(at, "R", beats=1)) is not None]
    assert lost[0] - start == pytest.approx(SILENT_S, abs=LOOK_S)


def test_a_slow_heartbeat_is_none_that_is_missing() -> None:
    rule = LivenessRule(HANG_TIMEOUT_S)
    for number in range(1000):
        assert rule.judge(Observation(number * LOOK_S, "R", beats=1 + number // 3)) is None
