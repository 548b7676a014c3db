"""Claims: pools change and lose instances while they serve, and every request has the tokens that
it would have had."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
from tests.e2e.conftest import Model
from tests.e2e.harness import running

from janus_moe.cluster.service import Service
from janus_moe.engine.scale_controller import ScaleController
from janus_moe.errors import ConflictError
from janus_moe.messages import SamplingParams

DEADLINE_S = 90.0
STREAMS = 6
TOKENS = 60


class Load:
    """Streams without end: as soon as one has ended, the same begins again.

    expected: [streams] tokens of each while nothing changed.
    rounds: how often each has ended since.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.expected: list[list[int]] = []
        self.rounds = 0

    async def once(self, number: int) -> list[int]:
        """Every other stream samples with a seed and a penalty."""
        sampling = SamplingParams(
            max_tokens=TOKENS,
            temperature=number % 2,
            seed=number,
            frequency_penalty=0.1,
            ignore_eos=True,
        )
        prompt = [number + 1, 4, 1, 5]
        tokens: list[int] = []
        async for chunk in self._service.engine.submit(f"{self.rounds} {number}", prompt, sampling):
            tokens += chunk.token_ids
        return tokens

    async def all(self) -> list[list[int]]:
        return list(await asyncio.gather(*map(self.once, range(STREAMS))))

    async def forever(self) -> None:
        while True:
            assert await self.all() == self.expected
            self.rounds += 1


@contextlib.asynccontextmanager
async def loaded(model: Model, **settings: Any) -> AsyncIterator[tuple[Service, ScaleController]]:
    """A service under load, with what changes it; the load fails the test when a token differs."""
    async with running(
        model.folder, max_model_len=160, kv_cache_memory_bytes=2**22, **settings
    ) as service:
        load = Load(service)
        load.expected = await load.all()
        work = asyncio.create_task(load.forever())
        control = service.engine.scale_controller
        assert control is not None
        try:
            async with asyncio.timeout(DEADLINE_S):
                yield service, control
            before = load.rounds
            async with asyncio.timeout(DEADLINE_S):
                while load.rounds < before + 2 and not work.done():
                    await asyncio.sleep(0.05)
        finally:
            work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        assert load.rounds >= 2


async def until(control: ScaleController, holds: Callable[[dict[str, Any]], bool]) -> None:
    while not holds(control.status()):
        await asyncio.sleep(0.02)


def shape(status: dict[str, Any]) -> str:
    return f"{len(status['attention'])}A{len(status['expert'])}E"


def is_quiet(status: dict[str, Any], wanted: str) -> bool:
    return status["phase"] == "serving" and shape(status) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_pools_grow_and_shrink_under_load(qwen3: Model, transport: str) -> None:
    async def run() -> None:
        limits = {"max_attention_instances": 2, "max_expert_instances": 3}
        async with loaded(qwen3, transport=transport, **limits) as (_, control):
            for attention, expert in ((2, 3), (1, 2), (2, 1), (1, 1)):
                control.scale(attention, expert, drain_timeout_s=0.2)
                await until(control, partial(is_quiet, wanted=f"{attention}A{expert}E"))
            assert control.status()["generation"] == 4
            assert all(one["outcome"] == "completed" for one in control.status()["history"])

    asyncio.run(run())


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_any_instance_may_be_killed_under_load(qwen3: Model, transport: str) -> None:
    async def run() -> None:
        shapes = {"attention_instances": 2, "expert_instances": 2}
        async with loaded(qwen3, transport=transport, **shapes) as (service, control):
            for victim in ("expert 1", "attention 0", "expert 0", "attention 1"):
                # gloo may crash a process whose peer dies; then it is lost like any other.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(service.pids[victim], signal.SIGKILL)
                await until(control, partial(is_without, victim=victim))
                await until(control, partial(is_quiet, wanted="2A2E"))

    asyncio.run(run())


def is_without(status: dict[str, Any], victim: str) -> bool:
    pool, number = victim.split()
    return int(number) not in [one["number"] for one in status[pool]]


@pytest.mark.slow
def test_a_change_under_way_is_given_up_on_request(qwen3: Model) -> None:
    async def run() -> None:
        async with loaded(qwen3, transport="shm") as (_, control):
            control.scale(2, 2, drain_timeout_s=0.0)
            with pytest.raises(ConflictError, match="starting"):
                control.scale(2, 1, drain_timeout_s=0.0)
            control.abort()
            await until(control, partial(is_quiet, wanted="1A1E"))
            assert control.status()["history"][0]["outcome"] == "aborted"
            with pytest.raises(ConflictError):
                control.abort()

    asyncio.run(run())
