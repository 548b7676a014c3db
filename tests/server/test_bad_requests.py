"""Every way of asking wrongly gets an answer in OpenAI's shape that names the field."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tests.server.conftest import MakeClient
from tests.server.fake_engine import FakeEngine

from janus_moe.config import EngineConfig
from janus_moe.errors import OverloadedError, RequestError, ServiceError, WorkerDied
from janus_moe.server.errors import ApiError
from janus_moe.server.parsing import decode_object, parse
from janus_moe.server.requests import CompletionBody

USER = {"role": "user", "content": "hello"}

COMPLETIONS: list[tuple[dict[str, Any], str | None]] = [
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 10**30}, "n"),
    ({"n": True}, "n"),
    ({"n": 2, "best_of": 3}, "best_of"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": -0.1}, "min_p"),
    ({"min_p": 1.1}, "min_p"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 600}, "max_tokens"),
    ({"max_tokens": 10**12}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"min_tokens": 17}, "min_tokens"),
    ({"seed": 2**63}, "seed"),
    ({"seed": "x"}, "seed"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": ["x" * 2000]}, "stop[0]"),
    ({"stop": 5}, "stop"),
    ({"stop_token_ids": [100_000]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"100000": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias[...]"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [1, [2]]}, "prompt"),
    ({"prompt": ["a", [2]]}, "prompt"),
    ({"prompt": [100_000]}, "prompt"),
    ({"prompt": [-1]}, "prompt[0]"),
    ({"prompt": [True]}, "prompt[0]"),
    ({"prompt": None}, None),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": [5] * 513}, "prompt"),
    ({"prompt": "hello " * 4000}, "prompt"),
    ({"prompt": ["a"] * 600, "n": 2}, "prompt"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options"),
    ({"suffix": "x"}, "suffix"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"guided_json": {}}, "guided_json"),
    ({"guided_regex": "a"}, "guided_regex"),
    ({"structured_outputs": {"json": {}}}, "structured_outputs"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"skip_special_tokens": False}, "skip_special_tokens"),
    ({"chat_template": "x"}, "chat_template"),
    ({"colour": "red"}, "colour"),
    ({"model": 3}, "model"),
]

CHATS: list[tuple[dict[str, Any], str | None]] = [
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": None}, None),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0]",
    ),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"functions": [{}]}, "functions"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 1}, "logprobs"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 600}, "max_tokens"),
    ({"echo": True}, "echo"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
]


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(("change", "param"), COMPLETIONS, ids=lambda value: str(value)[:60])
async def test_bad_completions(
    client: httpx.AsyncClient, engine: FakeEngine, change: dict[str, Any], param: str | None
) -> None:
    response = await client.post("/v1/completions", json={"prompt": "hello", **change})
    assert response.status_code == 400, response.text
    assert error_of(response)["param"] == param
    assert engine.submitted == []


@pytest.mark.parametrize(("change", "param"), CHATS, ids=lambda value: str(value)[:60])
async def test_bad_chats(
    client: httpx.AsyncClient, engine: FakeEngine, change: dict[str, Any], param: str | None
) -> None:
    response = await client.post("/v1/chat/completions", json={"messages": [USER], **change})
    assert response.status_code == 400, response.text
    assert error_of(response)["param"] == param
    assert engine.submitted == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b'"prompt"',
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
        b"[" * 100_000,
        b'{"prompt": "a", "x": ' + b'{"x":' * 50_000,
    ],
    ids=lambda body: repr(body[:30]),
)
async def test_bad_json(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post("/v1/completions", content=body)
    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_json"


async def test_what_is_possible_instead_is_named(client: httpx.AsyncClient) -> None:
    """Only what this server itself accepts."""
    for field, advice in (
        ("guided_json", {"stop": "a", "logit_bias": {"1": 1}}),
        ("functions", {}),
        ("max_new_tokens", {"max_tokens": 1}),
    ):
        response = await client.post("/v1/completions", json={"prompt": "a", field: [1]})
        message = error_of(response)["message"]
        assert field in message and all(name in message for name in advice), message
        good = await client.post("/v1/completions", json={"prompt": "a", **advice})
        assert good.status_code == 200


async def test_context_error_has_both_numbers(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", json={"prompt": [5] * 10, "max_tokens": 511})
    message = error_of(response)["message"]
    assert "512" in message and "10" in message and "511" in message


async def test_large_bodies(make_client: MakeClient) -> None:
    client = make_client(max_body_bytes=1000)
    declared = await client.post("/v1/completions", json={"prompt": "x" * 2000})
    assert declared.status_code == 413

    async def pieces() -> Any:
        for _ in range(50):
            yield b"x" * 100

    chunked = await client.post("/v1/completions", content=pieces())
    assert chunked.status_code == 413
    error_of(chunked)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
async def test_wrong_model(client: httpx.AsyncClient, path: str) -> None:
    body: dict[str, Any] = {"model": "gpt-5"} | (
        {"messages": [USER]} if "chat" in path else {"prompt": "a"}
    )
    response = await client.post(path, json=body)
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"


async def test_unknown_routes_and_methods(client: httpx.AsyncClient) -> None:
    assert error_of(await client.get("/nowhere"))["message"].endswith("/nowhere")
    assert (await client.get("/v1/completions/")).status_code == 404
    wrong = await client.get("/v1/completions")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    error_of(wrong)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (RequestError("too long", "prompt"), 400),
        (OverloadedError("full", retry_after_s=2.5), 429),
        (ServiceError("worker 10.0.0.3 lost"), 503),
        (WorkerDied("expert 2 at /tmp/x"), 503),
        (RuntimeError("secret 0x7f3a /root"), 500),
    ],
)
async def test_engine_errors_before_the_first_token(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    streaming: bool,
    failure: Exception,
    status: int,
) -> None:
    engine.failures = {1: failure}
    response = await client.post(
        "/v1/completions", json={"prompt": "a", "n": 2, "stream": streaming}
    )
    assert response.status_code == status
    error = error_of(response)
    for leak in ("10.0.0.3", "/tmp", "0x7f", "/root"):
        assert leak not in error["message"]
    assert (response.headers.get("retry-after") == "3") == (status == 429)
    assert engine.running == set()


@pytest.mark.parametrize(("wait_s", "header"), [(None, "5"), (0.2, "1"), (7.2, "8")])
async def test_a_refusal_for_a_while_says_when_to_come_back(
    client: httpx.AsyncClient, engine: FakeEngine, wait_s: float | None, header: str
) -> None:
    engine.failures = {0: ServiceError("expert 3 is nowhere", wait_s)}
    response = await client.post("/v1/completions", json={"prompt": "a", "stream": True})
    assert (response.status_code, response.headers["retry-after"]) == (503, header)
    assert "expert 3" not in error_of(response)["message"]


async def test_error_in_mid_stream(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.fail_after = 3
    response = await client.post("/v1/completions", json={"prompt": "a", "stream": True})
    assert response.status_code == 200
    last = response.text.rstrip().split("\n\n")[-1]
    assert last.startswith('data: {"error":')
    assert "passwd" not in response.text
    assert "[DONE]" not in response.text
    assert len(engine.aborted) == 1


async def test_one_failing_sample_aborts_the_others(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.fail_after = 3
    response = await client.post("/v1/completions", json={"prompt": "a", "n": 4})
    assert response.status_code == 500
    assert engine.running == set()
    assert len(engine.aborted) == 4


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"temperature": NaN}', "invalid character (byte 16)"),
        (b'{"temperature": 1e400}', "out of range"),
        (b'{"prompt": "\\ud800 and more"}', "surrogate"),
        (b'{"prompt": "\xff"}', "a text in it is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": "a"', "truncated"),
    ],
)
def test_what_is_no_json_is_told_why(body: bytes, reason: str) -> None:
    with pytest.raises(ApiError) as refused:
        decode_object(body)
    assert reason in str(refused.value)


def test_a_value_of_a_wrong_type_is_repeated_once() -> None:
    with pytest.raises(RequestError) as refused:
        parse(b'{"prompt": "a", "max_tokens": 2.5}', CompletionBody)
    assert str(refused.value).count("got") == 1


async def test_more_samples_than_are_ever_held_are_no_matter_of_time(
    make_client: MakeClient, engine: FakeEngine
) -> None:
    engine.config = EngineConfig(model="tiny-moe", max_queue=3)
    client = make_client()
    answer = await client.post("/v1/completions", json={"prompt": "a", "n": 4, "max_tokens": 1})
    assert answer.status_code == 400 and "at most 3 at once" in answer.json()["error"]["message"]


async def test_what_was_never_admitted_is_not_counted_as_aborted(
    make_client: MakeClient, engine: FakeEngine
) -> None:
    engine.failures[1] = OverloadedError("full")
    client = make_client()
    answer = await client.post("/v1/completions", json={"prompt": "a", "n": 1, "max_tokens": 1})
    assert answer.status_code == 200
    answer = await client.post("/v1/completions", json={"prompt": "a", "n": 1, "max_tokens": 1})
    assert answer.status_code == 429
    counted = (await client.get("/metrics")).text
    assert 'request_success_total{finished_reason="abort",model_name="tiny-moe"} 0.0' in counted
