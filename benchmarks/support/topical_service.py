"""Services of the topical model: streams whose topic changes, and what they saw.

How well a placement fits a topic is not judged here.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from benchmarks.support.topical_model import prompt

from janus_moe.cluster.service import Service
from janus_moe.config import EngineConfig
from janus_moe.messages import FromWorker, SamplingParams, StepDone
from janus_moe.profiling import live

PROMPT_TOKENS, OUTPUT_TOKENS, PROBE_TOKENS = 12, 36, 24
OBSERVED_STEPS = 500

Slots = tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(slots=True)
class Log:
    """What streams and the steps of one attention instance have shown.

    times, max_activated, epochs: of each step: when, mean over layers, placement.
    gaps: (when, seconds since the same stream's token before) of the tokens of all streams.
    answers: (topic, tokens) of greedy requests, the same two again and again.
    num_probes: greedy requests.
    changed_at: step at which the topic changed.
    changed_s: when it changed.
    """

    times: list[float] = field(default_factory=list)
    max_activated: list[float] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    gaps: list[tuple[float, float]] = field(default_factory=list)
    answers: set[tuple[int, tuple[int, ...]]] = field(default_factory=set)
    num_probes: int = 0
    changed_at: int = 0
    changed_s: float = 0.0

    def forget(self) -> None:
        for column in (self.times, self.max_activated, self.epochs):
            column.clear()

    def add(self, step: StepDone) -> None:
        if step.activity is not None:
            self.times.append(time.perf_counter())
            self.max_activated.append(step.activity.max_activated / step.activity.layers)
            self.epochs.append(step.epoch)


class Streams:
    """Short completions one after another, `count` at a time, run beside a greedy probe."""

    def __init__(self, service: Service, log: Log, count: int, topic: int) -> None:
        self.topic = topic
        self._service, self._log = service, log
        self._tasks = [asyncio.create_task(self._stream(index)) for index in range(count)]
        self._tasks.append(asyncio.create_task(self._probe()))

    async def until(self, num_steps: int) -> None:
        """Returns once the log has so many steps; raises what stopped a stream."""
        while len(self._log.max_activated) < num_steps:
            await asyncio.sleep(0.01)
            for task in self._tasks:
                if task.done():
                    task.result()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _stream(self, index: int) -> None:
        sampling = SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=1.0, ignore_eos=True)
        for number in itertools.count():
            ids = prompt(self.topic, PROMPT_TOKENS, 1000 * index + number)
            last = 0.0
            async for chunk in self._service.engine.submit(f"{index}-{number}", ids, sampling):
                now = time.perf_counter()
                if last and chunk.token_ids:
                    self._log.gaps.append((now, now - last))
                last = now

    async def _probe(self) -> None:
        sampling = SamplingParams(max_tokens=PROBE_TOKENS, temperature=0, ignore_eos=True)
        for number in itertools.count():
            topic = number % 2
            tokens: list[int] = []
            ids = prompt(topic, PROMPT_TOKENS, 10**6)
            async for chunk in self._service.engine.submit(f"probe-{number}", ids, sampling):
                tokens += chunk.token_ids
            self._log.answers.add((topic, tuple(tokens)))
            self._log.num_probes += 1
            await asyncio.sleep(2.0)


async def fitted_slots(config: EngineConfig, topic: int, streams: int) -> Slots:
    """Returns what a rebalance chooses once the service has seen nothing but this topic."""
    async with _logged(config) as (service, log):
        load = Streams(service, log, streams, topic)
        await load.until(OBSERVED_STEPS)
        await load.stop()
        return service.rebalancer._propose().target.slots


async def serve_change(
    config: EngineConfig, start: Slots, num_streams: int, before: int, after: int
) -> Log:
    """Serves the first topic from the placement `start` on, then the second.

    before, after: steps with each of them.
    """
    async with _logged(config) as (service, log):
        await _settled(service)  # the schedule may have moved something already
        await service.rebalancer.rebalance(start)
        await _settled(service)
        log.forget()
        load = Streams(service, log, num_streams, topic=0)
        await load.until(before)
        log.changed_at, log.changed_s, load.topic = len(log.max_activated), time.perf_counter(), 1
        await load.until(log.changed_at + after)
        await load.stop()
        return log


async def _settled(service: Service) -> None:
    while service.rebalancer.status.state != "idle":
        await asyncio.sleep(0.01)
    if service.rebalancer.status.error is not None:
        raise RuntimeError(f"the move failed: {service.rebalancer.status.error}")


@asynccontextmanager
async def _logged(config: EngineConfig) -> AsyncIterator[tuple[Service, Log]]:
    log = Log()

    def listen(service: Service) -> None:
        observe, reporter = service.rebalancer._observe, service.plan.membership.attention[0]

        def observe_and_log(message: FromWorker) -> None:
            if isinstance(message, StepDone) and message.instance == reporter:
                log.add(message)
            observe(message)

        service.rebalancer._observe = observe_and_log  # type: ignore[method-assign]

    async with live.running(config, listen) as service:
        yield service, log
