"""What completions and chat completions share once their jobs are known: run, then either one
JSON body or a stream of server-sent events, with usage.

A choice formats its own pieces; the whole answer is the pieces of a stream put together.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from fastapi import Request
from fastapi.responses import Response

from janus_moe.server.app_state import AppState
from janus_moe.server.backend import TokenChunk
from janus_moe.server.generation import Job, Usage, run_jobs
from janus_moe.server.inflight import while_connected
from janus_moe.server.requests import SamplingBody, StreamOptions
from janus_moe.server.streaming import EventStream

Json = dict[str, Any]


class Choice(Protocol):
    """One choice of an answer, fed with its chunks."""

    def pieces(self, chunk: TokenChunk) -> list[Json]:
        """Entries of `choices` to stream for this chunk; none while there is nothing to say."""

    def whole(self) -> Json:
        """The entry of `choices` for everything fed so far."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One request on its way: what to run and how to show it.

    head: fields of the answer besides choices and usage; stream_object: the object name of
    streamed pieces.
    """

    state: AppState
    request_id: str
    arrival_s: float
    head: Json
    stream_object: str
    jobs: Sequence[Job]
    choices: Sequence[Choice]

    async def whole(self) -> Json:
        """The complete answer."""
        usage = Usage(self.jobs)
        async with aclosing(self._run()) as chunks:
            async for job, chunk in chunks:
                usage.add(job, chunk)
                self.choices[job.index].pieces(chunk)
        choices = [choice.whole() for choice in self.choices]
        return {**self.head, "choices": choices, "usage": usage.as_dict()}

    async def events(self, options: StreamOptions) -> AsyncGenerator[bytes]:
        """The data of each event, `[DONE]` last."""
        usage = Usage(self.jobs)
        head = {**self.head, "object": self.stream_object}
        async with aclosing(self._run()) as chunks:
            async for job, chunk in chunks:
                usage.add(job, chunk)
                for piece in self.choices[job.index].pieces(chunk):
                    event = {**head, "choices": [piece]}
                    if options.continuous_usage_stats:
                        event["usage"] = usage.as_dict()
                    elif options.include_usage:
                        event["usage"] = None
                    yield msgspec.json.encode(event)
        if options.include_usage:
            yield msgspec.json.encode({**head, "choices": [], "usage": usage.as_dict()})
        yield b"[DONE]"

    def _run(self) -> AsyncGenerator[tuple[Job, TokenChunk]]:
        return run_jobs(self.state, self.request_id, self.jobs, self.arrival_s)


async def respond(request: Request, answer: Answer, body: SamplingBody) -> Response:
    """The response to a generation request; its work ends when the client leaves."""
    lifecycle = answer.state.lifecycle
    if body.stream:
        events = answer.events(body.stream_options or StreamOptions())
        return EventStream(events, lifecycle)
    whole = await while_connected(request.receive, lifecycle, answer.whole())
    return json_response(whole)


def json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
