"""Claims about one request's record: what the consumer gets of what a worker produced."""

from __future__ import annotations

from typing import Any

from tests.engine.fake_workers import TOKENIZER, tokens

from janus_moe.engine.chunks import TokenChunk
from janus_moe.engine.request import RequestRecord
from janus_moe.engine.text.detokenizer import Detokenizer
from janus_moe.engine.text.stopping import StopStrings
from janus_moe.errors import ServiceError
from janus_moe.messages import NewTokens, SamplingParams


def record(*stops: str) -> RequestRecord:
    return RequestRecord(
        request_id="a",
        prompt_ids=(1, 2),
        sampling=SamplingParams(),
        detokenizer=Detokenizer(TOKENIZER, (1, 2)),
        stops=StopStrings(stops),
    )


def new_tokens(**fields: Any) -> NewTokens:
    return NewTokens(request_id="a", admission=0, position=0, **fields)


def taken(one: RequestRecord) -> list[TokenChunk]:
    chunks = []
    while not one.chunks.empty():
        chunk = one.chunks.get_nowait()
        assert isinstance(chunk, TokenChunk)
        chunks.append(chunk)
    return chunks


def text_of(one: RequestRecord) -> str:
    return "".join(chunk.text for chunk in taken(one))


def test_tokens_are_kept_and_characters_held_until_they_are_whole() -> None:
    one = record()
    first, second = TOKENIZER.encode("é")
    assert not one.push(new_tokens(token_ids=(first,)))
    assert not one.push(new_tokens(token_ids=(second,)))
    assert [chunk.text for chunk in taken(one)] == ["", "é"]
    assert one.token_ids == [first, second]


def test_half_a_character_at_the_end_is_shown_as_broken() -> None:
    one = record()
    one.push(new_tokens(token_ids=(TOKENIZER.encode("é")[0],)))
    one.push(new_tokens(finish_reason="length"))
    assert text_of(one) == "\ufffd" and one.finished


def test_the_token_that_ended_it_is_counted_and_not_shown() -> None:
    one = record()
    last = tokens("a", "hi!", "stop")
    assert not one.push(last), "the worker knows"
    [chunk] = taken(one)
    assert (chunk.text, chunk.token_ids) == ("hi", last.token_ids)
    assert (chunk.finish_reason, chunk.stop_reason) == ("stop", None)


def test_a_stop_string_over_two_steps_ends_it_and_the_worker_must_be_told() -> None:
    one = record("lo w")
    assert not one.push(tokens("a", "hello"))
    assert one.push(tokens("a", " world"))
    assert not one.push(tokens("a", "late")), "nothing comes after the end"
    chunks = taken(one)
    assert "".join(chunk.text for chunk in chunks) == "hel"
    assert (chunks[-1].finish_reason, chunks[-1].stop_reason) == ("stop", "lo w")


def test_a_stop_string_in_the_last_step_needs_no_word_to_the_worker() -> None:
    one = record("yo")
    assert not one.push(tokens("a", "heyo", "length"))
    [chunk] = taken(one)
    assert (chunk.text, chunk.finish_reason, chunk.stop_reason) == ("he", "stop", "yo")


def test_the_beginning_of_a_stop_string_is_text_after_all_at_the_end() -> None:
    one = record("yonder")
    one.push(tokens("a", "heyo"))
    one.push(new_tokens(finish_reason="length"))
    assert text_of(one) == "heyo"


def test_an_error_ends_the_stream_once_and_not_after_its_end() -> None:
    one = record()
    one.fail(ServiceError("expert 5 died"))
    one.fail(ServiceError("again"))
    assert isinstance(one.chunks.get_nowait(), ServiceError) and one.chunks.empty()
    assert not one.push(tokens("a", "late")) and one.chunks.empty()
    ended = record()
    ended.push(tokens("a", "x", "length"))
    ended.fail(ServiceError("too late"))
    assert len(taken(ended)) == 1
