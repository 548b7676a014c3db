"""The engine requests behind one HTTP request: several prompts, several samples of each.

Knows nothing of the shape in which their output is shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

from janus_moe.errors import OverloadedError, RequestError, ServiceError
from janus_moe.messages import SamplingParams
from janus_moe.server.app_state import AppState
from janus_moe.server.backend import TokenChunk, TokenStream
from janus_moe.server.metrics import RequestTimer


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineJob:
    """One engine request.

    index: of the choice that it fills
    prompt_index: of its prompt among those of the HTTP request
    sample: which of the n samples of its prompt, from 0
    prompt_ids: token ids
    """

    index: int
    prompt_index: int
    sample: int
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: tuple[str, ...]


class Usage:
    """Token counts of one HTTP request; a prompt counts once however often it is sampled."""

    def __init__(self, jobs: Sequence[EngineJob]) -> None:
        self._prompt_tokens = sum(len(job.prompt_ids) for job in jobs if job.sample == 0)
        self._completion_tokens = 0
        self._cached: dict[int, int] = {}

    def add(self, job: EngineJob, chunk: TokenChunk) -> None:
        self._completion_tokens += len(chunk.token_ids)
        if job.sample == 0:
            known = self._cached.get(job.prompt_index, 0)
            self._cached[job.prompt_index] = max(known, chunk.num_cached_tokens)

    def as_dict(self) -> dict[str, object]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached.values())},
        }


async def run_jobs(
    state: AppState, request_id: str, jobs: Sequence[EngineJob], arrival_s: float
) -> AsyncGenerator[tuple[EngineJob, TokenChunk]]:
    """Chunks of all jobs as they arrive. Closing it, or any error, aborts what is unfinished."""
    async with AsyncExitStack() as stack:
        streams = []
        for job in jobs:
            stream = _submit(state, request_id, job)
            stack.push_async_callback(stream.aclose)
            streams.append(stream)
        timers = [RequestTimer(state.metrics, state.monotonic, arrival_s) for _ in jobs]
        for timer in timers:
            stack.callback(timer.close)
        merged = merge(streams)
        stack.push_async_callback(merged.aclose)
        try:
            async for index, chunk in merged:
                timers[index].chunk(chunk)
                yield jobs[index], chunk
        except (OverloadedError, RequestError):
            for timer in timers:
                timer.refused()
            raise


def _submit(state: AppState, request_id: str, job: EngineJob) -> TokenStream:
    return state.backend.submit(f"{request_id}-{job.index}", job.prompt_ids, job.sampling, job.stop)


async def merge(streams: Sequence[TokenStream]) -> AsyncGenerator[tuple[int, TokenChunk]]:
    """(stream index, chunk) in order of arrival, until every stream has finished."""
    if len(streams) == 1:
        async with aclosing(_until_finished(streams[0])) as chunks:
            async for chunk in chunks:
                yield 0, chunk
        return
    arrivals: asyncio.Queue[tuple[int, TokenChunk | Exception | None]] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(i, stream, arrivals)) for i, stream in enumerate(streams)]
    try:
        unfinished = len(tasks)
        while unfinished:
            index, arrival = await arrivals.get()
            if isinstance(arrival, Exception):
                raise arrival
            if arrival is None:
                unfinished -= 1
            else:
                yield index, arrival
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    index: int,
    stream: TokenStream,
    arrivals: asyncio.Queue[tuple[int, TokenChunk | Exception | None]],
) -> None:
    try:
        async with aclosing(_until_finished(stream)) as chunks:
            async for chunk in chunks:
                arrivals.put_nowait((index, chunk))
        arrivals.put_nowait((index, None))
    # Whatever it is, it is raised again where the streams come together.
    except Exception as error:
        arrivals.put_nowait((index, error))


async def _until_finished(stream: TokenStream) -> AsyncGenerator[TokenChunk]:
    async for chunk in stream:
        yield chunk
        if chunk.finish_reason is not None:
            return
    raise ServiceError("the engine ended a request without a finish reason")
