"""Claims about which requests can be served at all, with the numbers in the refusal."""

from __future__ import annotations

import math
from typing import Any

import pytest

from janus_moe.engine.admission import RANGES, RequestLimits, admit
from janus_moe.errors import RequestError
from janus_moe.messages import SamplingParams

LIMITS = RequestLimits(max_model_len=32, cache_tokens=24, vocab_size=100)


def refusal(prompt: list[int], **sampling: Any) -> RequestError:
    with pytest.raises(RequestError) as raised:
        admit(prompt, SamplingParams(**sampling), LIMITS)
    return raised.value


def test_the_largest_that_fits_is_admitted() -> None:
    """The last token is never fed back, so it takes no room in the cache."""
    admit([99] * 20, SamplingParams(max_tokens=5), LIMITS)
    assert refusal([99] * 20, max_tokens=6).param == "max_tokens"
    admit([0] * 24, SamplingParams(max_tokens=1), LIMITS)
    admit([0] * 24, SamplingParams(max_tokens=0), LIMITS)


def test_an_empty_prompt_and_unknown_tokens_are_refused() -> None:
    assert "is empty" in str(refusal([]))
    for token in (-1, 100):
        assert "between 0 and 99" in str(refusal([1, token]))


def test_a_context_that_is_too_long_names_what_to_shorten() -> None:
    error = refusal([1] * 30, max_tokens=3)
    assert error.param == "max_tokens" and "30 tokens and 3 more" in str(error)
    assert refusal([1] * 40, max_tokens=0).param == "prompt"


def test_a_cache_that_is_too_small_names_the_setting() -> None:
    error = refusal([1] * 20, max_tokens=10)
    assert "29 tokens" in str(error) and "--kv-cache-memory-bytes" in str(error)


@pytest.mark.parametrize(("name", "low", "high"), RANGES)
def test_parameters_outside_their_range_are_refused_by_name(
    name: str, low: float, high: float
) -> None:
    for value in (low - 1, math.nan):
        assert refusal([1], **{name: value}).param in (name, "max_tokens")
    if high < 2**63 - 1:
        error = refusal([1], **{name: high + 1})
        assert error.param == name and f"between {low} and {high}" in str(error)


def test_tokens_outside_the_vocabulary_and_endless_biases_are_refused() -> None:
    assert refusal([1], logit_bias={100: 1.0}).param == "logit_bias"
    assert refusal([1], logit_bias={5: math.inf}).param == "logit_bias"
    assert refusal([1], stop_token_ids=(-1,)).param == "stop_token_ids"
