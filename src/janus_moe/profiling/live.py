"""Decoding with a running service: seconds per step, and the activated experts it saw."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from janus_moe.cluster.service import Service
from janus_moe.config import EngineConfig
from janus_moe.messages import SamplingParams


@dataclass(frozen=True, slots=True)
class Decoded:
    """seconds: of a step, a mean over those in which every request was decoding.
    activated: mean of the busiest expert instance, per layer. context: mean positions."""

    seconds: float
    activated: float
    context: float


@contextlib.asynccontextmanager
async def running(
    config: EngineConfig, before: Callable[[Service], None] = lambda service: None
) -> AsyncIterator[Service]:
    """A service that is ready; it is stopped afterwards. before: is called with it first."""
    service = Service.prepare(config)
    before(service)
    ready = asyncio.Event()
    task = asyncio.create_task(service.run(ready))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if task.done():
            task.result()
        yield service
    finally:
        waiting.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def decode(service: Service, prompts: Sequence[Sequence[int]], num_tokens: int) -> Decoded:
    """Greedy tokens for all prompts at once. prompts: ids, alike in length and new to the service
    (a prefix cache changes nothing here, for only steps after all prompts count)."""
    sampling = SamplingParams(max_tokens=num_tokens + 1, temperature=0, ignore_eos=True)
    arrivals: list[list[float]] = [[] for _ in prompts]
    counters = service.engine.counters
    before = (0, 0)

    async def one(index: int) -> None:
        nonlocal before
        name = f"profile-{time.monotonic_ns()}-{index}"
        async for chunk in service.engine.submit(name, list(prompts[index]), sampling):
            if not arrivals[index]:  # in the end: when the last prompt was in
                before = counters.layer_passes, counters.max_activated
            arrivals[index] += [time.perf_counter()] * len(chunk.token_ids)

    await asyncio.gather(*(one(index) for index in range(len(prompts))))
    all_started = max(times[0] for times in arrivals)
    ended = max(times[-1] for times in arrivals)
    steps = min(sum(t > all_started for t in times) for times in arrivals)
    passes = counters.layer_passes - before[0]
    return Decoded(
        seconds=(ended - all_started) / max(1, steps),
        activated=(counters.max_activated - before[1]) / max(1, passes),
        context=len(prompts[0]) + num_tokens / 2,
    )
