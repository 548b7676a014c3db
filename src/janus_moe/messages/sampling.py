"""How tokens are chosen, and what one step produced for a request."""

from __future__ import annotations

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are chosen and when a sequence ends. Defaults as in OpenAI's API.

    temperature: 0 is greedy.
    top_k: 0 keeps all.
    top_p: 1.0 keeps all.
    min_p: 0.0 keeps all.
    seed: not negative, of 63 bits; the same one gives the same tokens whatever else is in the
        batch; None draws one.
    logprobs: number of alternatives per produced token; None for no log-probabilities at all.
    prompt_logprobs: the same for prompt tokens (echo).
    stop_token_ids: end the sequence, besides the model's end-of-sequence ids.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """One token's natural-log probability under the unmodified model, and its best rivals.

    top: (token id, log-probability) pairs, most likely first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class NewTokens(msgspec.Struct, frozen=True, kw_only=True):
    """What one step produced for one request.

    admission: of the request, as its `AddRequest` said.
    position: of the first token here among all that the request has ever produced, from 0.
    finish_reason: "stop" (end-of-sequence or stop token) or "length"; None while it goes on.
    stop_token_id: the token that ended it, when it was one.
    prompt_logprobs: sent once, before or with the first token; first entry is None (no context).
    num_cached_tokens: prompt tokens served from the prefix cache.
    queued_seconds: from arrival to the first step; sent once.
    """

    request_id: str
    admission: int
    position: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    finish_reason: str | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int = 0
    queued_seconds: float | None = None
