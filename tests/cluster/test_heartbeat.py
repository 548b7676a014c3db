"""Claims about heartbeats: the page says what was last written, also by another process; a stack
tells whether a thread computes, waits for a peer or is in no step."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

import pytest

from janus_moe.attention.instance import AttentionInstance
from janus_moe.cluster.heartbeat_page import MAX_THREADS, HeartbeatPage, Phase, ThreadActivity
from janus_moe.cluster.worker.heartbeat import advance, phase_of
from janus_moe.tracing import SpanLog
from janus_moe.transport.lockstep.wakeup import ThreadWakeup

ACTIVITIES = (
    ThreadActivity(Phase.COMPUTING, 2**40, 7, 2**50, 100),
    ThreadActivity(Phase.OUTSIDE, -1, 0, 0, 0),
)


@pytest.fixture
def descriptor() -> int:
    return HeartbeatPage.create()


def test_what_one_process_writes_another_reads(descriptor: int) -> None:
    reading = HeartbeatPage(descriptor)
    assert reading.read() == (0, ())
    if os.fork() == 0:
        writing = HeartbeatPage(descriptor)
        writing.beat(ACTIVITIES)
        writing.beat(ACTIVITIES[:1])
        os._exit(0)
    os.wait()
    assert reading.read() == (2, ACTIVITIES[:1])
    reading.close()
    os.close(descriptor)


def test_a_page_that_is_being_written_is_not_read(descriptor: int) -> None:
    page = HeartbeatPage(descriptor)
    page.beat(ACTIVITIES)
    page._words[0] += 1
    assert page.read() is None
    page._words[0] += 1
    assert page.read() == (2, ACTIVITIES)
    os.close(descriptor)


def test_more_threads_than_have_room_are_left_out(descriptor: int) -> None:
    page = HeartbeatPage(descriptor)
    page.beat(ACTIVITIES[:1] * (MAX_THREADS + 1))
    assert page.read() == (1, ACTIVITIES[:1] * MAX_THREADS)
    os.close(descriptor)


class Thread:
    """One that runs an attention instance's step, which does what the test says."""

    def __init__(self, inside: Callable[[], object] | None) -> None:
        self.there, self.go = threading.Event(), threading.Event()

        def compute(*_: object) -> None:
            if inside is not None:
                inside()
            raise RuntimeError("the step is over")

        instance = AttentionInstance.__new__(AttentionInstance)
        instance._batcher = self  # type: ignore[assignment]
        self.plan = compute
        self.run = instance.step if inside is not None else self.go.wait
        self.thread = threading.Thread(target=self._live, daemon=True)
        self.thread.start()

    def _live(self) -> None:
        self.there.set()
        try:
            self.run()
        except RuntimeError:
            return

    def phase(self, expected: Phase) -> Phase:
        """What it is at, once it is there."""
        for _ in range(1000):
            frame = sys._current_frames().get(self.thread.ident or 0)
            if (found := phase_of(frame)) is expected:
                break
            self.there.wait(0.01)
        return found


def test_a_stack_tells_what_a_thread_is_at() -> None:
    wakeup, go = ThreadWakeup(), threading.Event()
    assert Thread(None).phase(Phase.OUTSIDE) is Phase.OUTSIDE
    assert Thread(lambda: wakeup.wait(60.0)).phase(Phase.WAITING) is Phase.WAITING
    assert Thread(lambda: go.wait(60.0)).phase(Phase.COMPUTING) is Phase.COMPUTING
    wakeup.notify()
    go.set()


def test_time_counts_while_the_same_step_is_computed() -> None:
    spans = SpanLog()
    activity = ThreadActivity(Phase.OUTSIDE, -1, 0, 0, 0)
    told = []
    for phase, step in [
        (Phase.COMPUTING, 0),
        (Phase.COMPUTING, 0),
        (Phase.WAITING, 0),
        (Phase.COMPUTING, 0),
        (Phase.COMPUTING, 0),
        (Phase.COMPUTING, 1),
    ]:
        spans.step = step
        activity = advance(activity, phase, spans, 0.1)
        told.append(activity.computing_ms)
    assert told == [0, 100, 100, 100, 200, 0]
