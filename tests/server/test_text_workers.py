from __future__ import annotations

import asyncio
import threading
import time

import pytest

from janus_moe.errors import OverloadedError, RequestError
from janus_moe.server.text_workers import TextWorkers


async def test_answers_and_errors_come_back() -> None:
    workers = TextWorkers()
    assert await workers.run(lambda: 1 + 1) == 2
    with pytest.raises(ZeroDivisionError):
        await workers.run(lambda: 1 / 0)
    workers.close()


async def test_work_that_overstays_is_given_up_and_the_next_goes_on() -> None:
    workers = TextWorkers(num_threads=1, time_limit_s=0.1)
    release = threading.Event()
    with pytest.raises(RequestError, match=r"longer than 0\.1 s"):
        await workers.run(lambda: release.wait(10))
    assert await workers.run(lambda: "fine") == "fine"
    release.set()
    workers.close()


async def test_too_much_waiting_is_overload() -> None:
    workers = TextWorkers(num_threads=1, max_waiting=2)
    slow = [asyncio.create_task(workers.run(lambda: time.sleep(0.1))) for _ in range(2)]
    await asyncio.sleep(0.02)
    with pytest.raises(OverloadedError):
        await workers.run(lambda: None)
    await asyncio.gather(*slow)
    workers.close()


async def test_the_event_loop_goes_on_meanwhile() -> None:
    workers = TextWorkers()
    task = asyncio.create_task(workers.run(lambda: time.sleep(0.2)))
    ticks = 0
    while not task.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks > 5
    workers.close()
