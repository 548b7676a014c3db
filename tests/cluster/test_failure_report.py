"""Claims about which failure is the cause: a worker's own error or its loss, at once and before
what it caused, in whatever order they are heard; what is heard later is told, decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest

from janus_moe.cluster.failure_report import FailureReport
from janus_moe.cluster.grace_periods import LAST_WORDS_S, PEER_EVENT_S
from janus_moe.cluster.runtime.base import RuntimeFailed, WorkersLost
from janus_moe.errors import HostLost, ServiceError, WorkerDied, WorkerFailed
from janus_moe.messages import Failed

WORKERS = ("attention 0", "attention 1", "expert 0", "expert 1")


def report(stage: str = "serving") -> FailureReport:
    made = FailureReport(WORKERS)
    made.stage = stage
    return made


def killed(worker: str) -> WorkersLost:
    return WorkersLost((worker,), WorkerDied, f"{worker} was killed by SIGKILL")


def exited(worker: str) -> WorkersLost:
    return WorkersLost((worker,), WorkerDied, f"{worker} exited with status 1", spoke=True)


def peer_lost(worker: str, peer: str) -> Failed:
    error = f"{peer} is gone: its connection closed (stage reply, step 3, layer 1); look at it"
    return Failed(name=worker, error=error, caused_by_peer=True)


def seen(peer: str) -> str:
    return f"attention 0 saw: {peer} is gone: its connection closed (stage reply, step 3, layer 1)"


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
    made.on_event(exited("expert 1"), 0.09)
    made.on_failed("attention 1", peer_lost("attention 1", "expert 1"), 0.09)
    made.on_failed("expert 1", Failed(name="expert 1", error="x"), 0.1)
    error, at_s = end(made, 0.1)
    assert (type(error), at_s) == (WorkerFailed, 0.1)
    assert str(error).startswith(said)


def test_a_worker_that_was_killed_is_the_cause_at_once() -> None:
    made = report()
    made.on_event(killed("expert 1"), 5.0)
    error, at_s = end(made, 5.0)
    assert (type(error), at_s) == (WorkerDied, 5.0)
    assert str(error) == "expert 1 was killed by SIGKILL while serving"


def test_a_worker_that_exited_is_the_cause_once_its_words_would_have_been_read() -> None:
    made = report()
    made.on_event(exited("expert 1"), 5.0)
    error, at_s = end(made, 5.0)
    assert (type(error), at_s) == (WorkerDied, 5.0 + LAST_WORDS_S)
    assert LAST_WORDS_S <= 0.05


def test_the_killed_worker_is_named_whatever_is_heard_first() -> None:
    """Its peers lose it, say so and end, which is heard in any order."""
    told: list[Callable[[FailureReport], None]] = [
        lambda r: r.on_event(killed("expert 1"), 0.0),
        lambda r: r.on_failed("attention 0", peer_lost("attention 0", "expert 1"), 0.0),
        lambda r: r.on_event(exited("attention 0"), 0.0),
    ]
    for order in permutations(told):
        made = report()
        for tell in order:
            tell(made)
        error, at_s = end(made)
        assert at_s == 0.0
        assert str(error) == f"expert 1 was killed by SIGKILL while serving; {seen('expert 1')}"


def test_what_is_heard_after_the_verdict_is_told() -> None:
    made = report()
    made.on_event(killed("expert 1"), 0.0)
    assert end(made)[1] == 0.0
    assert made.later(peer_lost("attention 0", "expert 1")) == seen("expert 1")
    assert made.later(Failed(name="expert 1", error="no memory")) == "expert 1 said: no memory"
    assert made.later(killed("expert 0")) == "expert 0 was killed by SIGKILL"


def test_a_lost_host_is_named_rather_than_the_workers_that_lost_its_instances() -> None:
    made = report()
    made.on_failed("attention 0", peer_lost("attention 0", "expert 0"), 0.0)
    made.on_event(exited("attention 0"), 0.01)
    made.on_event(WorkersLost(("expert 0", "expert 1"), HostLost, "host b closed it"), 0.04)
    error, at_s = end(made, 0.04)
    assert (type(error), at_s) == (HostLost, 0.04)
    assert str(error) == f"host b closed it while serving; {seen('expert 0')}"


def test_a_lost_peer_of_which_nothing_more_is_heard_is_told_by_who_lost_it() -> None:
    made = report()
    made.on_failed("attention 0", peer_lost("attention 0", "expert 0"), 2.0)
    made.on_failed("attention 1", peer_lost("attention 1", "expert 0"), 2.01)
    error, at_s = end(made, 2.01)
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
    made.on_event(WorkersLost((), HostLost, "host b closed its connection"), 0.0)
    assert str(end(made)[0]) == "host b closed its connection while starting"


def test_what_the_runtime_says_of_itself_is_the_cause_at_once() -> None:
    made = report("starting")
    made.on_event(RuntimeFailed("host b: the model differs"), 3.0)
    assert (str(made.verdict(3.0)), made.stage) == ("host b: the model differs", "starting")
