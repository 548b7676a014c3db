"""The engine's record of one request, which turns new tokens into text and looks for stop strings.

It holds the only copy of prompt and produced tokens that must survive a worker. Knows nothing
of HTTP or of how workers are reached.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import msgspec

from janus_moe.engine.chunks import FinishReason, TokenChunk
from janus_moe.engine.text.detokenizer import Detokenizer
from janus_moe.engine.text.stopping import StopStrings
from janus_moe.errors import JanusError
from janus_moe.messages import AddRequest, NewTokens, SamplingParams
from janus_moe.spec import InstanceId


@dataclass(slots=True)
class RequestRecord:
    """A request from admission to its last chunk.

    instance: the attention instance that computes it; None while it waits for one.
    admission: number of its admission there; 0 while it waits for one.
    unstarted_tokens: of this admission, until they are in the cache of the instance.
    arrived_at: clock reading, seconds.
    held_s: seconds from its arrival to its latest admission.
    token_ids: what it has produced.
    started: something of it has been heard; what is said once of a request has been said.
    finished: nothing more goes into `chunks`.
    chunks: what the consumer has not taken yet; an error ends the stream.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    detokenizer: Detokenizer
    stops: StopStrings
    instance: InstanceId | None = None
    admission: int = 0
    unstarted_tokens: int = 0
    arrived_at: float = 0.0
    held_s: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    chunks: asyncio.Queue[TokenChunk | JanusError] = field(default_factory=asyncio.Queue)
    started: bool = False
    finished: bool = False

    def add_request(self, instance: InstanceId, eos_token_ids: tuple[int, ...]) -> AddRequest:
        """Its present admission as an instance is told: with all that it has produced so far."""
        sampling = self.sampling
        if self.started and sampling.prompt_logprobs is not None:  # they have been streamed
            sampling = msgspec.structs.replace(sampling, prompt_logprobs=None)
        return AddRequest(
            instance=instance,
            request_id=self.request_id,
            admission=self.admission,
            prompt_ids=(*self.prompt_ids, *self.token_ids),
            sampling=sampling,
            eos_token_ids=eos_token_ids,
            position=len(self.token_ids),
        )

    def expects(self, new: NewTokens) -> bool:
        """Whether these tokens are of the present admission and come next."""
        return new.admission == self.admission and new.position == len(self.token_ids)

    def push(self, new: NewTokens) -> bool:
        """Takes what a step produced, which has to be what it expects.

        True when a stop string ended the request just now: the worker does not know it yet and
        must be told.
        """
        if self.finished:
            return False
        reason: FinishReason | None = None
        stop_reason: int | str | None = new.stop_token_id
        if new.finish_reason is not None:
            reason = "stop" if new.finish_reason == "stop" else "length"
        self.token_ids += new.token_ids
        visible = new.token_ids[:-1] if reason == "stop" else new.token_ids
        text, matched = self.stops.push(self.detokenizer.push(visible))
        stopped_by_string = matched is not None
        if stopped_by_string:
            reason, stop_reason = "stop", matched
        elif reason is not None:
            rest, matched = self.stops.push(self.detokenizer.flush())
            text += rest
            if matched is not None:
                reason, stop_reason = "stop", matched
            else:
                text += self.stops.flush()
        self.finished = reason is not None
        first, self.started = not self.started, True
        queued_s = None
        if first and new.queued_seconds is not None:
            queued_s = self.held_s + new.queued_seconds
        self.chunks.put_nowait(
            TokenChunk(
                text=text,
                token_ids=new.token_ids,
                logprobs=new.logprobs,
                prompt_logprobs=new.prompt_logprobs if first else None,
                finish_reason=reason,
                stop_reason=stop_reason,
                num_cached_tokens=new.num_cached_tokens if first else 0,
                queued_s=queued_s,
            )
        )
        return stopped_by_string and new.finish_reason is None

    def fail(self, error: JanusError) -> None:
        """Ends the stream with an error."""
        if not self.finished:
            self.finished = True
            self.chunks.put_nowait(error)
