"""Claims about when a worker that lives is lost: when it stays stopped, and for no other reason
that the kernel or the observer's own absence could give."""

from __future__ import annotations

import pytest

from janus_moe.cluster.liveness import LOOK_S, STOPPED_S, SUSPECT_LOOK_S, LivenessRule, Observation

NOTICED_WITHIN_S = 1.5


def lost_after(states: str, every_s: float = SUSPECT_LOOK_S) -> tuple[int, str] | None:
    """After which of the observations, one a look, the worker is lost, and why."""
    rule = LivenessRule()
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
    rule = LivenessRule()
    assert not rule.suspects
    for state, suspects in (("S", False), ("T", True), ("R", False)):
        rule.judge(Observation(0.0, state))
        assert rule.suspects == suspects
