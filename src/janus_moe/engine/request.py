"""The engine's record of one request, which turns new tokens into text and looks for stop strings.

It holds the only copy of prompt and produced tokens that must survive a worker. Knows nothing
of HTTP or of how workers are reached.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from janus_moe.engine.chunks import FinishReason, TokenChunk
from janus_moe.engine.text.detokenizer import Detokenizer
from janus_moe.engine.text.stopping import StopStrings
from janus_moe.errors import JanusError
from janus_moe.messages import NewTokens, SamplingParams
from janus_moe.spec import InstanceId


@dataclass(slots=True)
class RequestRecord:
    """A request from admission to its last chunk.

    instance: the attention instance that computes it.
    token_ids: what it has produced.
    started: its prompt has been computed.
    finished: nothing more goes into `chunks`.
    chunks: what the consumer has not taken yet; an error ends the stream.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    instance: InstanceId
    detokenizer: Detokenizer
    stops: StopStrings
    token_ids: list[int] = field(default_factory=list)
    chunks: asyncio.Queue[TokenChunk | JanusError] = field(default_factory=asyncio.Queue)
    started: bool = False
    finished: bool = False

    def push(self, new: NewTokens) -> bool:
        """Takes what a step produced.

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
        self.chunks.put_nowait(
            TokenChunk(
                text=text,
                token_ids=new.token_ids,
                logprobs=new.logprobs,
                prompt_logprobs=new.prompt_logprobs,
                finish_reason=reason,
                stop_reason=stop_reason,
                num_cached_tokens=new.num_cached_tokens,
                queued_s=new.queued_seconds,
            )
        )
        return stopped_by_string and new.finish_reason is None

    def fail(self, error: JanusError) -> None:
        """Ends the stream with an error."""
        if not self.finished:
            self.finished = True
            self.chunks.put_nowait(error)
