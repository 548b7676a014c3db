from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from janus_moe.engine.text.detokenizer import Detokenizer
from janus_moe.engine.text.tokenizer import Tokenizer

RELAXED = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push([i]) for i in ids), detokenizer.flush()]


@RELAXED
@given(ids=st.lists(st.integers(0, 335), max_size=60))
def test_any_ids_give_the_text_of_decoding_at_once(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@RELAXED
@given(text=st.text(max_size=60))
def test_text_survives(tokenizer: Tokenizer, fallback_tokenizer: Tokenizer, text: str) -> None:
    for each in (tokenizer, fallback_tokenizer):
        ids = each.encode(text)
        assert "".join(stream(each, ids)) == each.decode(ids)


def test_incomplete_characters_are_held_back(tokenizer: Tokenizer) -> None:
    ids = [
        next(i for i in range(335) if tokenizer.token_bytes(i) == bytes([b]))
        for b in b"\xf0\x9f\x91\x8b"
    ]
    assert stream(tokenizer, ids) == ["", "", "", "👋", ""]
    assert stream(tokenizer, ids[:2]) == ["", "", "\ufffd"]


def test_byte_fallback_characters_are_held_back(fallback_tokenizer: Tokenizer) -> None:
    ids = [3 + byte for byte in "€".encode()]
    assert stream(fallback_tokenizer, ids) == ["", "", "€", ""]
    assert stream(fallback_tokenizer, ids[:1]) == ["", "\ufffd"]


def test_context_keeps_the_space_of_the_first_token(fallback_tokenizer: Tokenizer) -> None:
    prompt = fallback_tokenizer.encode("hello")
    word = fallback_tokenizer.core.token_to_id("\u2581he")
    assert Detokenizer(fallback_tokenizer, prompt).push([word]) == " he"


@pytest.mark.parametrize("token", ["\u2581he", "<0xE2>"])
def test_time_is_linear(fallback_tokenizer: Tokenizer, token: str) -> None:
    ids = [fallback_tokenizer.core.token_to_id(token)] * 20_000
    started = time.perf_counter()
    stream(fallback_tokenizer, ids)
    assert time.perf_counter() - started < 5.0


def test_special_tokens_are_skipped(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hel<|im_end|>lo")
    assert "".join(stream(tokenizer, ids)) == "hello"
