"""Looks at the worker processes of this host now and then, and tells which of them are lost.

It asks the kernel, so no worker has to do anything for it. `LivenessRule` decides; what is done
about a lost worker is the caller's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from janus_moe.cluster.liveness import LOOK_S, SUSPECT_LOOK_S, LivenessRule, Observation

OnSilent = Callable[[str, str], None]


class Watcher:
    """Watches workers from `watch` on until they end or `close`. One asyncio loop uses it.

    on_silent: called once with the name of a worker that is lost and why, as the rest of a
        sentence.
    """

    def __init__(self, on_silent: OnSilent) -> None:
        self._on_silent = on_silent
        self._watched: dict[str, tuple[int, LivenessRule]] = {}
        self._task: asyncio.Task[None] | None = None

    def watch(self, name: str, pid: int) -> None:
        """Watches a child of this process, which must not have been waited for."""
        self._watched[name] = (pid, LivenessRule())
        if self._task is None:
            self._task = asyncio.create_task(self._look_forever())

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _look_forever(self) -> None:
        while True:
            suspects = any(rule.suspects for _, rule in self._watched.values())
            await asyncio.sleep(SUSPECT_LOOK_S if suspects else LOOK_S)
            for name in list(self._watched):
                self._look(name)

    def _look(self, name: str) -> None:
        pid, rule = self._watched[name]
        state = state_of(pid)
        if state is None:
            del self._watched[name]
        elif reason := rule.judge(Observation(time.monotonic(), state)):
            del self._watched[name]
            self._on_silent(name, reason)


def state_of(pid: int) -> str | None:
    """The state of a process, a letter as in /proc/PID/stat; None when it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        state = (
            Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()[0]
        )
        return None if state in "ZX" else state
    return None
