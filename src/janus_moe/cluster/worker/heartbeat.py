"""A thread of a worker that says now and then what the serving threads are at.

It looks at their stacks, so that they need not tell: the functions in which they compute a step, in
which they wait for peers, and those that compile. It does not judge; see `cluster.liveness`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from types import CodeType, FrameType

from janus_moe import transport
from janus_moe.attention.instance import AttentionInstance
from janus_moe.cluster.heartbeat_page import HeartbeatPage, Phase, ThreadActivity
from janus_moe.cluster.liveness import LOOK_S, SUSPECT_LOOK_S
from janus_moe.experts.instance import ExpertInstance
from janus_moe.tracing import SpanLog

STEPS: frozenset[CodeType] = frozenset(
    method.__code__ for method in (AttentionInstance.step, ExpertInstance._answer)
)
WAITS = ("wait", "wait_for", "wait_for_event")
TRANSPORT = transport.__file__.rpartition("/")[0]
COMPILERS = ("/numba/", "/llvmlite/", "/triton/", "/torch/_inductor/", "/torch/_dynamo/")
UNSEEN = ThreadActivity(Phase.OUTSIDE, -1, 0, 0, 0)


class Heartbeat:
    """Beats from `start` on, until the process ends.

    descriptor: of the page, owned from here on; -1 means that there is none.
    """

    def __init__(self, descriptor: int) -> None:
        self._page = None if descriptor < 0 else HeartbeatPage(descriptor)
        self._instances: dict[str, SpanLog] = {}
        self._activities: dict[str, ThreadActivity] = {}

    def start(self, instances: Mapping[str, SpanLog]) -> None:
        """instances: name of an instance -> where it says which step it is in. Its threads are
        called like it, with a comma and more if it has several."""
        self._instances = dict(instances)
        if self._page is not None:
            threading.Thread(
                target=self._beat_forever, args=(self._page,), name="heartbeat", daemon=True
            ).start()

    def _beat_forever(self, page: HeartbeatPage) -> None:
        looked_at = time.monotonic()
        while True:
            page.beat(list(self._activities.values()))
            idle = all(activity.phase is Phase.OUTSIDE for activity in self._activities.values())
            time.sleep(LOOK_S if idle else SUSPECT_LOOK_S)
            now = time.monotonic()
            self._look(min(now - looked_at, LOOK_S))
            looked_at = now

    def _look(self, passed_s: float) -> None:
        frames = sys._current_frames()
        for thread in threading.enumerate():
            spans = self._instances.get(thread.name.partition(",")[0])
            if spans is not None and thread.ident in frames:
                before = self._activities.get(thread.name, UNSEEN)
                phase = phase_of(frames[thread.ident])
                self._activities[thread.name] = advance(before, phase, spans, passed_s)


def advance(
    activity: ThreadActivity, phase: Phase, spans: SpanLog, passed_s: float
) -> ThreadActivity:
    """What a thread is at now, after it was seen at `activity` so many seconds ago.

    Between two looks that find it computing the same step it has done so all the time, as far as
    anyone can tell.
    """
    same = spans.step == activity.step
    computed = same and phase is activity.phase is Phase.COMPUTING
    computing_ms = (activity.computing_ms if same else 0) + round(1000 * passed_s * computed)
    return ThreadActivity(phase, spans.step, spans.tokens, spans.pairs(), computing_ms)


def phase_of(frame: FrameType | None) -> Phase:
    """What the thread whose innermost frame this is is at."""
    inside: Phase | None = None
    while frame is not None:
        code = frame.f_code
        if code in STEPS:
            return inside or Phase.COMPUTING
        if inside is None:
            if code.co_name in WAITS and code.co_filename.startswith(TRANSPORT):
                inside = Phase.WAITING
            elif any(part in code.co_filename for part in COMPILERS):
                inside = Phase.COMPILING
        frame = frame.f_back
    return Phase.OUTSIDE
