"""What completions and chat completions share once their jobs are known.

The jobs run, then the client gets one JSON body or a stream of server-sent events, with usage.
It does not know how a choice looks: a `ChoiceFormatter` makes its deltas, and the whole choice is
its deltas put together.
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
from janus_moe.server.inflight import while_connected
from janus_moe.server.jobs import EngineJob, Usage, run_jobs
from janus_moe.server.requests import SamplingBody, StreamOptions
from janus_moe.server.streaming import EventStream

Json = dict[str, Any]


class ChoiceFormatter(Protocol):
    """One choice of a response, fed with the chunks of its job."""

    def deltas(self, chunk: TokenChunk) -> list[Json]:
        """Entries of `choices` to stream for this chunk; none while there is nothing to say."""

    def whole(self) -> Json:
        """The entry of `choices` for everything fed so far."""


@dataclass(frozen=True, kw_only=True)
class GenerationResponse:
    """One generation request: what to run and how to show it.

    request_id: prefix of the ids that the engine sees
    arrival_s: when the request came, on the clock of `state.monotonic`
    head: fields of the body besides choices and usage
    stream_object: `object` of streamed events
    jobs: engine requests, one for each choice
    choices: formatters, in the order of the jobs
    """

    state: AppState
    request_id: str
    arrival_s: float
    head: Json
    stream_object: str
    jobs: Sequence[EngineJob]
    choices: Sequence[ChoiceFormatter]

    async def whole(self) -> Json:
        """Returns the complete body."""
        usage = Usage(self.jobs)
        async with aclosing(self._run()) as chunks:
            async for job, chunk in chunks:
                usage.add(job, chunk)
                self.choices[job.index].deltas(chunk)
        choices = [choice.whole() for choice in self.choices]
        return {**self.head, "choices": choices, "usage": usage.as_dict()}

    async def events(self, options: StreamOptions) -> AsyncGenerator[bytes]:
        """Yields the data of each event, `[DONE]` last."""
        usage = Usage(self.jobs)
        head = {**self.head, "object": self.stream_object}
        async with aclosing(self._run()) as chunks:
            async for job, chunk in chunks:
                usage.add(job, chunk)
                for delta in self.choices[job.index].deltas(chunk):
                    event = {**head, "choices": [delta]}
                    if options.continuous_usage_stats:
                        event["usage"] = usage.as_dict()
                    elif options.include_usage:
                        event["usage"] = None
                    yield msgspec.json.encode(event)
        if options.include_usage:
            yield msgspec.json.encode({**head, "choices": [], "usage": usage.as_dict()})
        yield b"[DONE]"

    def _run(self) -> AsyncGenerator[tuple[EngineJob, TokenChunk]]:
        return run_jobs(self.state, self.request_id, self.jobs, self.arrival_s)


async def respond(request: Request, generation: GenerationResponse, body: SamplingBody) -> Response:
    """Returns the HTTP response; the work for it ends when the client leaves."""
    lifecycle = generation.state.lifecycle
    if body.stream:
        events = generation.events(body.stream_options or StreamOptions())
        return EventStream(events, lifecycle)
    whole = await while_connected(request.receive, lifecycle, generation.whole())
    return json_response(whole)


def json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
