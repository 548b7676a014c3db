"""Claims about local workers: the end of one is told at once, with how it ended."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator

import pytest

from janus_moe.cluster.runtime.base import RuntimeEvent, WorkersLost, WorkerSpec
from janus_moe.cluster.runtime.local import LocalRuntime

NOTICED_WITHIN_S = 0.05
LEAVES_S = 5.0


@pytest.fixture
async def runtime() -> AsyncIterator[LocalRuntime]:
    made = LocalRuntime(f"ipc://@janus-test-{os.getpid()}")
    yield made
    await made.stop(0.1, None)


async def test_the_end_of_a_worker_is_told_at_once(runtime: LocalRuntime) -> None:
    names = [f"expert {number}" for number in range(5)]
    heard: asyncio.Queue[tuple[RuntimeEvent, float]] = asyncio.Queue()
    await runtime.start(
        [WorkerSpec(name, "local", 1) for name in names],
        lambda event: heard.put_nowait((event, time.monotonic())),
    )
    waited = []
    for name in names:
        pid = runtime.pids[name]
        start = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        event, at = await asyncio.wait_for(heard.get(), LEAVES_S)
        waited.append(at - start)
        assert isinstance(event, WorkersLost)
        assert (event.workers, event.spoke) == ((name,), False)
        assert event.sentence == f"{name} (pid {pid}) was killed by SIGKILL"
    assert statistics.median(waited) < NOTICED_WITHIN_S
