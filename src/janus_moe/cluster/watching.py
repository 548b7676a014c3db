"""Looks at the worker processes of this host now and then, and tells which of them are lost.

It asks the kernel and reads what workers say on their pages. `LivenessRule` decides; what is done
about a lost worker is the caller's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from janus_moe.cluster.heartbeat_page import HeartbeatPage, ThreadActivity
from janus_moe.cluster.liveness import LOOK_S, SUSPECT_LOOK_S, LivenessRule, Observation

OnSilent = Callable[[str, str], None]


@dataclass(slots=True)
class _Watched:
    """One worker, and what was last read on its page."""

    pid: int
    page: HeartbeatPage
    rule: LivenessRule
    beats: int = 0
    activities: tuple[ThreadActivity, ...] = ()


class Watcher:
    """Watches workers from `watch` on until they end or `close`. One asyncio loop uses it.

    on_silent: called once with the name of a worker that is lost and why, as the rest of a
        sentence.
    """

    def __init__(self, on_silent: OnSilent) -> None:
        self._on_silent = on_silent
        self._watched: dict[str, _Watched] = {}
        self._task: asyncio.Task[None] | None = None

    def watch(self, name: str, pid: int, page: HeartbeatPage, hang_timeout_s: float) -> None:
        """Watches a child of this process, which must not have been waited for.

        page: what the worker writes; it is closed when it is not read any more.
        """
        self._watched[name] = _Watched(pid, page, LivenessRule(hang_timeout_s))
        if self._task is None:
            self._task = asyncio.create_task(self._look_forever())

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        for name in list(self._watched):
            self._forget(name)

    async def _look_forever(self) -> None:
        while True:
            suspects = any(watched.rule.suspects for watched in self._watched.values())
            await asyncio.sleep(SUSPECT_LOOK_S if suspects else LOOK_S)
            for name in list(self._watched):
                self._look(name)

    def _look(self, name: str) -> None:
        watched = self._watched[name]
        state = state_of(watched.pid)
        if state is None:
            self._forget(name)
            return
        if (said := watched.page.read()) is not None:
            watched.beats, watched.activities = said
        queued_s = queued_by_thread(watched.pid) if watched.rule.suspects else {}
        seen = Observation(time.monotonic(), state, watched.beats, watched.activities, queued_s)
        if reason := watched.rule.judge(seen):
            self._forget(name)
            self._on_silent(name, reason)

    def _forget(self, name: str) -> None:
        self._watched.pop(name).page.close()


def state_of(pid: int) -> str | None:
    """The state of a process, a letter as in /proc/PID/stat; None when it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        state = (
            Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()[0]
        )
        return None if state in "ZX" else state
    return None


def queued_by_thread(pid: int) -> dict[int, float]:
    """Thread id -> seconds that the thread was ready to run and had no core, in its life; {} where
    the kernel does not count them."""
    found = {}
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError, IndexError):  # it has ended, or nothing is counted
            found[int(task.name)] = int((task / "schedstat").read_text().split()[1]) / 1e9
    return found
