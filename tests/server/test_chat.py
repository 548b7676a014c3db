from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from tests.server.conftest import MakeClient
from tests.server.fake_engine import FakeEngine
from tests.server.test_completions import stream

MESSAGES = [{"role": "user", "content": "hello"}]
RENDERED = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


async def chat(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/chat/completions", json={"messages": MESSAGES, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def test_shape_of_an_answer(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.reply = "the fox"
    answer = await chat(client, model="tiny-moe", return_token_ids=True)
    assert answer["object"] == "chat.completion"
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "the fox"}
    assert choice["finish_reason"] == "stop"
    assert choice["token_ids"] == [*engine.tokenizer.encode("the fox"), 1]
    prompt = engine.tokenizer.encode(RENDERED)
    assert answer["prompt_token_ids"] == prompt
    assert engine.submitted[0][1] == tuple(prompt)
    assert engine.submitted[0][2].max_tokens == engine.max_model_len - len(prompt)


async def test_logprobs(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.reply = "€"
    answer = await chat(client, logprobs=True, top_logprobs=2)
    content = answer["choices"][0]["logprobs"]["content"]
    assert [entry["bytes"] for entry in content[:3]] == [[0xE2], [0x82], [0xAC]]
    assert content[0]["token"] == "bytes:\\xe2"
    assert all(len(entry["top_logprobs"]) == 2 for entry in content)
    plain = await chat(client, logprobs=True)
    assert plain["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert engine.submitted[1][2].logprobs == 0


async def test_stream(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.reply = "grüße the fox"
    events = await stream(
        client,
        "/v1/chat/completions",
        {"messages": MESSAGES, "n": 2, "stream_options": {"include_usage": True}},
    )
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {event["object"] for event in events[:-1]} == {"chat.completion.chunk"}
    for index in (0, 1):
        pieces = [e["choices"][0] for e in events[:-2] if e["choices"][0]["index"] == index]
        assert "role" in pieces[0]["delta"]
        assert not any("role" in piece["delta"] for piece in pieces[1:])
        assert "".join(p["delta"].get("content", "") for p in pieces) == "grüße the fox"
        assert pieces[-1]["finish_reason"] == "stop"
    assert events[-2]["usage"]["total_tokens"] > 0
    assert events[-1] == "[DONE]"


async def test_limits_of_tokens(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = await chat(client, **{name: 3})
        assert answer["usage"]["completion_tokens"] == 3
    assert engine.submitted[0][2].max_tokens == 3


async def test_harmless_fields_of_clients(client: httpx.AsyncClient) -> None:
    await chat(
        client,
        max_tokens=1,
        tools=[],
        tool_choice="none",
        parallel_tool_calls=True,
        response_format={"type": "text"},
        store=False,
        service_tier="auto",
        metadata=None,
        frequency_penalty=None,
    )


async def test_operators_template(
    make_client: MakeClient, engine: FakeEngine, tmp_path: Path
) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{{ messages[0].content }}{% if loud %}!{% endif %}")
    client = make_client(chat_template=str(path))
    await chat(client, max_tokens=1, chat_template_kwargs={"loud": True})
    assert engine.submitted[0][1] == tuple(engine.tokenizer.encode("hello!"))
    info = (await client.get("/tokenizer_info")).json()
    assert info["chat_template"] == path.read_text()
