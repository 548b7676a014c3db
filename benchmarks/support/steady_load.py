"""Streams that start again when they end, each compared with its tokens of a run without faults.

What happens to the service meanwhile is not known here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from janus_moe.cluster.service import Service
from janus_moe.messages import SamplingParams

LONGEST_PROMPT = 256
AFTER_S = 0.3
"""A gap that begins this long after an event still counts as its effect, seconds."""


class Gap(NamedTuple):
    """Time between two tokens of a stream, both in `time.monotonic` seconds."""

    begin: float
    end: float


class SteadyLoad:
    """Streams of one service; every other one samples, with a seed of its own.

    service: serves them.
    num_streams: at once.
    num_tokens: of each.
    describe: what the service goes through, for the report of a stream that differs.
    """

    def __init__(
        self, service: Service, num_streams: int, num_tokens: int, describe: Callable[[], str]
    ) -> None:
        self._service = service
        self._num_tokens = num_tokens
        self._describe = describe
        self._expected: list[tuple[int, ...]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._streams = range(num_streams)
        self.gaps: list[list[Gap]] = [[] for _ in self._streams]
        self.completed = 0
        self.differing: list[str] = []

    async def start(self) -> None:
        """Takes the expected tokens, and lets the streams run until `stop`."""
        self._expected = list(await asyncio.gather(*(self._stream(i) for i in self._streams)))
        self.gaps = [[] for _ in self._streams]
        self._tasks = [asyncio.create_task(self._repeat(i)) for i in self._streams]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def all_end(self, within_s: float) -> bool:
        """Whether as many streams as there are end in time."""
        goal, until = self.completed + 2 * len(self._streams), time.monotonic() + within_s
        while self.completed < goal and time.monotonic() < until:
            await asyncio.sleep(0.05)
        return self.completed >= goal

    def longest_after(self, event: float) -> list[float]:
        """The longest gap of each stream that an event may have caused, seconds."""
        caused = (
            [gap.end - gap.begin for gap in gaps if gap.end > event > gap.begin - AFTER_S]
            for gaps in self.gaps
        )
        return [max(of_stream) for of_stream in caused if of_stream]

    def usual(self) -> float:
        """The median gap, seconds."""
        return float(np.median([gap.end - gap.begin for gaps in self.gaps for gap in gaps]))

    async def _repeat(self, index: int) -> None:
        while True:
            try:
                tokens = await self._stream(index)
            except Exception as error:  # any failed request is a finding
                self.differing.append(f"stream {index} failed: {error!r}; {self._describe()}")
                await asyncio.sleep(0.5)
            else:
                if tokens != self._expected[index]:
                    self.differing.append(self._difference(index, tokens))
            self.completed += 1

    async def _stream(self, index: int) -> tuple[int, ...]:
        sampling = SamplingParams(
            max_tokens=self._num_tokens,
            temperature=float(index % 2),
            seed=index,
            ignore_eos=True,
        )
        length = 1 + (LONGEST_PROMPT - 1) * index // (len(self._streams) - 1)
        vocabulary = self._service.plan.spec.vocab_size
        prompt = [(37 * index + 11 * i) % (vocabulary - 1) + 1 for i in range(length)]
        name = f"{time.monotonic_ns()}-{index}"
        tokens: list[int] = []
        last = 0.0
        async for chunk in self._service.engine.submit(name, prompt, sampling):
            now = time.monotonic()
            if last:
                self.gaps[index].append(Gap(last, now))
            last = now
            tokens += chunk.token_ids
        return tuple(tokens)

    def _difference(self, index: int, tokens: tuple[int, ...]) -> str:
        expected = self._expected[index]
        pairs = enumerate(zip(tokens, expected, strict=False))
        first = next((i for i, (got, want) in pairs if got != want), "none")
        return (
            f"stream {index}: {len(tokens)} of {len(expected)} tokens, the first that differs is "
            f"{first}; {self._describe()}"
        )
