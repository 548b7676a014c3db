"""Whether a request can be served at all: pure checks against the limits of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from janus_moe.errors import RequestError
from janus_moe.messages import SamplingParams

UNBOUNDED = 2**63 - 1
RANGES: tuple[tuple[str, float, float], ...] = (
    ("max_tokens", 0, UNBOUNDED),
    ("min_tokens", 0, UNBOUNDED),
    ("temperature", 0.0, 100.0),
    ("top_k", 0, UNBOUNDED),
    ("top_p", 1e-9, 1.0),
    ("min_p", 0.0, 1.0),
    ("seed", 0, UNBOUNDED),
    ("repetition_penalty", 1e-2, 1e2),
    ("presence_penalty", -1e2, 1e2),
    ("frequency_penalty", -1e2, 1e2),
    ("logprobs", 0, UNBOUNDED),
    ("prompt_logprobs", 0, UNBOUNDED),
)
"""(parameter, lowest, highest) that can be computed; the HTTP side may allow less."""


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one request may ask for.

    max_model_len: tokens of prompt and output together.
    cache_tokens: tokens that the KV cache of one attention instance holds.
    vocab_size: token ids are 0 to vocab_size - 1.
    """

    max_model_len: int
    cache_tokens: int
    vocab_size: int


def admit(prompt_ids: Sequence[int], sampling: SamplingParams, limits: RequestLimits) -> None:
    """Raises RequestError, with the numbers and the fix, when a request can never be served."""
    length = len(prompt_ids)
    if length == 0:
        raise RequestError("the prompt is empty; send at least one token", "prompt")
    if not all(0 <= token < limits.vocab_size for token in prompt_ids):
        raise RequestError(f"token ids must be between 0 and {limits.vocab_size - 1}", "prompt")
    if length + sampling.max_tokens > limits.max_model_len:
        raise RequestError(
            f"the prompt has {length} tokens and {sampling.max_tokens} more are asked for, "
            f"but the context is {limits.max_model_len} tokens; shorten one of them",
            "max_tokens" if length < limits.max_model_len else "prompt",
        )
    needed = length + max(0, sampling.max_tokens - 1)  # the last token is never fed back
    if needed > limits.cache_tokens:
        raise RequestError(
            f"the request needs room for {needed} tokens but the KV cache of an attention "
            f"instance holds {limits.cache_tokens}; ask for less or raise "
            "--kv-cache-memory-bytes",
            "max_tokens",
        )
    _check_sampling(sampling, limits.vocab_size)


def _check_sampling(params: SamplingParams, vocab_size: int) -> None:
    """Every parameter is in the range in which it means something; NaN is in none."""
    for name, low, high in RANGES:
        value = getattr(params, name)
        if value is not None and not low <= value <= high:
            raise RequestError(f"{name} must be between {low} and {high}, got {value}", name)
    for name in ("logit_bias", "stop_token_ids"):
        for token in getattr(params, name):
            if not 0 <= token < vocab_size:
                raise RequestError(
                    f"{name}: token id {token} is outside the vocabulary of {vocab_size}", name
                )
    if not all(math.isfinite(value) for value in params.logit_bias.values()):
        raise RequestError("logit_bias values must be finite numbers", "logit_bias")
