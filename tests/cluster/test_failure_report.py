"""Claims about which failure is the cause: a worker's own error at once, a loss before what it
caused, in whatever order they are heard; and no failure is kept for ever."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest

from janus_moe.cluster.failure_report import FailureReport
from janus_moe.cluster.grace_periods import (
    FAILURE_REPORT_S,
    PEER_EVENT_S,
    REMOTE_FAILURE_REPORT_S,
)
from janus_moe.cluster.runtime.base import RuntimeFailed, WorkersLost
from janus_moe.errors import HostLost, ServiceError, WorkerDied, WorkerFailed
from janus_moe.messages import Failed

WORKERS = ("attention 0", "attention 1", "expert 0", "expert 1")


def report(stage: str = "serving") -> FailureReport:
    made = FailureReport(WORKERS)
    made.stage = stage
    return made


def killed(worker: str, *, is_remote: bool = False) -> WorkersLost:
    return WorkersLost((worker,), WorkerDied, f"{worker} was killed by SIGKILL", is_remote)


def peer_lost(worker: str, peer: str) -> Failed:
    error = f"{peer} is gone: its connection closed (stage reply, step 3, layer 1); look at it"
    return Failed(name=worker, error=error, caused_by_peer=True)


def end(made: FailureReport, now_s: float = 0.0) -> tuple[ServiceError, float]:
    """The verdict and when it comes, asking only when the report says so."""
    for _ in range(5):
        if (error := made.verdict(now_s)) is not None:
            return error, now_s
        due_s = made.due_s()
        assert due_s is not None and due_s > now_s, "nobody would ask again"
        now_s = due_s
    raise AssertionError("no verdict")


def test_nothing_is_wrong_with_a_service_of_which_nothing_is_heard() -> None:
    assert report().verdict(1e9) is None
    assert report().due_s() is None


@pytest.mark.parametrize(
    ("stage", "said"), [("serving", "expert 1 failed: x"), ("starting", "expert 1 could not start")]
)
def test_a_workers_own_error_is_the_cause_at_once(stage: str, said: str) -> None:
    made = report(stage)
    made.on_event(killed("attention 0"), 0.0)
    made.on_failed("attention 1", peer_lost("attention 1", "expert 1"), 0.0)
    made.on_failed("expert 1", Failed(name="expert 1", error="x"), 0.1)
    error, at_s = end(made, 0.1)
    assert (type(error), at_s) == (WorkerFailed, 0.1)
    assert str(error).startswith(said)


@pytest.mark.parametrize(
    ("is_remote", "wait_s"), [(False, FAILURE_REPORT_S), (True, REMOTE_FAILURE_REPORT_S)]
)
def test_a_worker_that_ended_without_a_word_is_the_cause_after_a_moment(
    is_remote: bool, wait_s: float
) -> None:
    made = report()
    made.on_event(killed("expert 1", is_remote=is_remote), 5.0)
    error, at_s = end(made, 5.0)
    assert (type(error), at_s) == (WorkerDied, 5.0 + wait_s)
    assert str(error) == "expert 1 was killed by SIGKILL while serving"


def test_the_killed_worker_is_named_whatever_is_heard_first() -> None:
    """Its peers lose it, say so and end, which is heard in any order; a peer adds what it saw."""
    told: list[Callable[[FailureReport], None]] = [
        lambda r: r.on_event(killed("expert 1"), 0.0),
        lambda r: r.on_failed("attention 0", peer_lost("attention 0", "expert 1"), 0.0),
        lambda r: r.on_event(
            WorkersLost(("attention 0",), WorkerDied, "attention 0 exited with status 1"), 0.0
        ),
    ]
    for order in permutations(told):
        made = report()
        for tell in order:
            tell(made)
        error, at_s = end(made)
        assert at_s == FAILURE_REPORT_S
        assert str(error) == (
            "expert 1 was killed by SIGKILL while serving; attention 0 saw: expert 1 is gone: its "
            "connection closed (stage reply, step 3, layer 1)"
        )


def test_a_lost_host_is_named_rather_than_the_workers_that_lost_its_instances() -> None:
    made = report()
    made.on_failed("attention 0", peer_lost("attention 0", "expert 0"), 0.0)
    made.on_event(killed("attention 0"), 0.1)
    lost = WorkersLost(("expert 0", "expert 1"), HostLost, "host b closed its connection", True)
    made.on_event(lost, 0.5)
    error, at_s = end(made, 0.5)
    assert (type(error), at_s) == (HostLost, 0.5 + REMOTE_FAILURE_REPORT_S)
    assert str(error).startswith("host b closed its connection while serving; attention 0 saw: ")


def test_a_lost_peer_of_which_nothing_more_is_heard_is_told_by_who_lost_it() -> None:
    made = report()
    made.on_failed("attention 0", peer_lost("attention 0", "expert 0"), 2.0)
    made.on_failed("attention 1", peer_lost("attention 1", "expert 0"), 2.5)
    error, at_s = end(made, 2.5)
    assert at_s == 2.0 + PEER_EVENT_S
    assert str(error).startswith("attention 0 failed: expert 0 is gone")


def test_when_everybody_has_spoken_nothing_is_waited_for() -> None:
    made = report()
    for worker in WORKERS:
        made.on_failed(worker, peer_lost(worker, "another"), 1.0)
    error, at_s = end(made, 1.0)
    assert at_s == 1.0
    assert str(error).startswith("attention 0 failed")


def test_a_host_that_is_lost_before_it_runs_anything_is_told() -> None:
    made = report("starting")
    made.on_event(WorkersLost((), HostLost, "host b closed its connection", True), 0.0)
    assert str(end(made)[0]) == "host b closed its connection while starting"


def test_what_the_runtime_says_of_itself_is_the_cause_at_once() -> None:
    made = report("starting")
    made.on_event(RuntimeFailed("host b: the model differs"), 3.0)
    assert (str(made.verdict(3.0)), made.stage) == ("host b: the model differs", "starting")
