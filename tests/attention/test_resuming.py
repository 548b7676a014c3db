"""A request resumed at any position goes on as one that was never moved.

What the engine sends again is the prompt with the produced tokens; all that the next token depends
on has to follow from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.attention.pools import Attention, Weights, reports_of
from tests.checkpoints import make_checkpoint

from janus_moe.messages import NewTokens

PROMPT = [(31 * i + 5) % 250 for i in range(11)]
OTHER = [7, 7, 9]
TOKENS = 10
LOGPROB_TOLERANCE = 1e-4  # a prompt and a single token are computed in different shapes
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.9, "seed": 2**40 + 11},
    "truncated": {"temperature": 1.3, "seed": 5, "top_k": 12, "top_p": 0.9, "min_p": 0.01},
    "repetition": {"repetition_penalty": 1.7},
    "presence": {"presence_penalty": 1.5, "temperature": 0.4, "seed": 1},
    "frequency": {"frequency_penalty": 1.1, "repetition_penalty": 1.2},
    "bias": {"logit_bias": {3: 2.5, 90: -4.0}, "temperature": 0.8, "seed": 8},
}


@pytest.fixture(scope="module", params=["qwen3_moe", "deepseek_v3"])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder: Path = tmp_path_factory.mktemp(request.param) / "model"
    return Weights(make_checkpoint(folder, request.param, seed=6))


def served(weights: Weights, prompt: Sequence[int], position: int, **options: Any) -> Attention:
    """One request beside another, in chunks of prompts and with a cache that knows prefixes."""
    attention = Attention(weights, prefix_caching=True, max_num_batched_tokens=8)
    attention.add("other", OTHER, temperature=0.7)
    attention.add("r", prompt, position=position, admission=4, **options)
    attention.run()
    return attention


def reports(weights: Weights, prompt: Sequence[int], position: int, **options: Any) -> Any:
    return reports_of(served(weights, prompt, position, **options).steps, "r")


def assert_same(one: NewTokens, other: NewTokens) -> None:
    assert one.token_ids == other.token_ids and one.position == other.position
    assert one.finish_reason == other.finish_reason
    assert one.stop_token_id == other.stop_token_id
    for left, right in zip(one.logprobs or (), other.logprobs or (), strict=True):
        assert left.token_id == right.token_id
        assert left.logprob == pytest.approx(right.logprob, abs=LOGPROB_TOLERANCE)
        assert [token for token, _ in left.top] == [token for token, _ in right.top]


@pytest.mark.parametrize("way", WAYS)
def test_the_rest_is_that_of_a_request_which_was_never_moved(weights: Weights, way: str) -> None:
    options = {"max_tokens": TOKENS, "logprobs": 2} | WAYS[way]
    whole = reports(weights, PROMPT, 0, **options)
    tokens = [token for report in whole for token in report.token_ids]
    assert len(tokens) == TOKENS
    for position in range(TOKENS):
        rest = reports(weights, PROMPT + tokens[:position], position, **options)
        assert [report.position for report in rest] == list(range(position, TOKENS))
        for one, other in zip(rest, whole[position:], strict=True):
            assert_same(one, other)
            assert one.admission == 4


def test_stop_tokens_and_the_least_number_of_tokens_count_what_was_produced_before(
    weights: Weights,
) -> None:
    tokens = [t for r in reports(weights, PROMPT, 0, max_tokens=TOKENS) for t in r.token_ids]
    ending = tokens[2]
    options = {"max_tokens": TOKENS, "min_tokens": 5, "stop_token_ids": (ending, tokens[4])}
    whole = reports(weights, PROMPT, 0, **options)
    produced = [token for report in whole for token in report.token_ids]
    assert produced != tokens[: len(produced)], "the ending tokens were forbidden at first"
    for position in range(len(produced)):
        rest = reports(weights, PROMPT + produced[:position], position, **options)
        for one, other in zip(rest, whole[position:], strict=True):
            assert_same(one, other)


def test_a_request_whose_cache_is_full_to_the_last_token_may_be_moved(weights: Weights) -> None:
    """What was admitted anywhere fits anywhere: prompt and output less the last token."""
    blocks = -(-(len(PROMPT) + TOKENS - 1) // 4)
    whole = Attention(weights, num_blocks=blocks)
    whole.add("r", PROMPT, max_tokens=TOKENS)
    tokens = whole.run()["r"]
    for position in (1, TOKENS - 1):
        other = Attention(weights, num_blocks=blocks, prefix_caching=True)
        other.add("r", PROMPT + tokens[:position], position=position, max_tokens=TOKENS)
        assert other.run()["r"] == tokens[position:]


def test_prompt_logprobs_are_of_the_prompt_alone_and_may_be_left_out(weights: Weights) -> None:
    options = {"max_tokens": TOKENS, "prompt_logprobs": 1}
    first, *_ = whole = reports(weights, PROMPT, 0, **options)
    tokens = [token for report in whole for token in report.token_ids]
    again, *_ = reports(weights, PROMPT + tokens[:4], 4, **options)
    assert len(again.prompt_logprobs) == len(first.prompt_logprobs) == len(PROMPT)
    without, *_ = reports(weights, PROMPT + tokens[:4], 4, max_tokens=TOKENS)
    assert without.prompt_logprobs is None and without.token_ids == again.token_ids


def test_an_abort_of_an_old_admission_does_not_end_the_new_one(weights: Weights) -> None:
    attention = Attention(weights)
    attention.add("r", PROMPT, max_tokens=TOKENS)
    tokens = [attention.step().outputs[0].token_ids[0] for _ in range(3)]
    attention.add("r", PROMPT + tokens, position=3, admission=2, max_tokens=TOKENS)
    assert attention.instance.report().num_waiting == 1, "it has taken the place of the old one"
    attention.instance.abort("r", 1)
    rest = attention.step().outputs[0]
    assert (rest.admission, rest.position) == (2, 3)
    attention.instance.abort("r", 2)
    assert not attention.instance.has_work and attention.blocks.usage == 0.0
