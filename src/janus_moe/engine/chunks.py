"""What a request's stream carries, and the states of an engine. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from janus_moe.messages import TokenLogprob

FinishReason = Literal["stop", "length", "abort"]
Status = Literal["loading", "ready", "draining", "dead"]


@dataclass(frozen=True, slots=True)
class TokenChunk:
    """New output of one request.

    text: the new characters; may lag behind `token_ids` while a character or a possible stop
        string is incomplete.
    logprobs: one entry per token of `token_ids`, when asked for.
    prompt_logprobs: one entry per prompt token, in one chunk only; the first entry is None.
    finish_reason: set in the last chunk and only there.
    stop_reason: the stop string or stop token id that ended the request; None for end of sequence.
    queued_s: seconds from arrival to the first step, in one chunk only.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int = 0
    queued_s: float | None = None
