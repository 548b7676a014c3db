"""Tokenizing and template rendering off the event loop, with limits on time and number.

Threads cannot be stopped from outside: one that overstays its limit is given up and replaced, and
as a daemon it does not keep the process from exiting.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from janus_moe.errors import OverloadedError, RequestError

T = TypeVar("T")


@dataclass(slots=True)
class _Job:
    work: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    result: asyncio.Future[Any]
    started: bool = False


class TextWorkers:
    """A few threads for text work. `run` may be called from one event loop only."""

    def __init__(
        self,
        *,
        num_threads: int = 2,
        time_limit_s: float = 30.0,
        max_waiting: int = 256,
        max_given_up: int = 8,
    ) -> None:
        self._time_limit_s = time_limit_s
        self._max_waiting = max_waiting
        self._spare = max_given_up
        self._num_threads = num_threads
        self._num_jobs = 0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`. Raises OverloadedError when too much is waiting, RequestError
        when it takes too long."""
        if self._num_jobs >= self._max_waiting:
            raise OverloadedError("too many texts are waiting to be tokenized")
        self._start_threads()
        loop = asyncio.get_running_loop()
        job = _Job(work, loop, loop.create_future())
        self._num_jobs += 1
        self._jobs.put(job)
        try:
            async with asyncio.timeout(self._time_limit_s):
                result: T = await job.result
                return result
        except TimeoutError:
            self._give_up(job)
            raise RequestError(
                f"preparing the prompt took longer than {self._time_limit_s:g} s"
            ) from None
        finally:
            self._num_jobs -= 1

    def close(self) -> None:
        """Lets idle threads end."""
        for _ in range(16):
            self._jobs.put(None)

    def _start_threads(self) -> None:
        while self._num_threads > 0:
            self._num_threads -= 1
            threading.Thread(target=_work, args=(self._jobs,), name="text", daemon=True).start()

    def _give_up(self, job: _Job) -> None:
        if job.started and self._spare > 0:
            self._spare -= 1
            self._num_threads += 1


def _work(jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        if job.result.cancelled():
            continue
        job.started = True
        try:
            outcome, failed = job.work(), False
        # Last resort: an error of any kind belongs to the waiting request, not to this thread.
        except Exception as error:
            outcome, failed = error, True
        try:
            job.loop.call_soon_threadsafe(_set_result, job.result, outcome, failed)
        except RuntimeError:  # the event loop is gone, and so are its waiting requests
            return


def _set_result(future: asyncio.Future[Any], outcome: Any, failed: bool) -> None:
    if future.done():
        return
    if failed:
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
