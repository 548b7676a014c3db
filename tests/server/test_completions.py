from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from tests.server.fake_engine import FakeEngine


async def complete(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/completions", json={"prompt": "the fox", **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def stream(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[Any]:
    response = await client.post(path, json={"stream": True, **body})
    assert response.headers["content-type"].startswith("text/event-stream")
    data = [line[6:] for line in response.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in data]


async def test_shape_of_an_answer(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.reply = "jumps over"
    answer = await complete(client, max_tokens=50)
    assert answer["object"] == "text_completion"
    assert answer["model"] == "tiny-moe"
    assert answer["choices"] == [
        {
            "index": 0,
            "text": "jumps over",
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    prompt, produced = engine.tokenizer.encode("the fox"), engine.tokenizer.encode("jumps over")
    assert answer["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": len(produced) + 1,
        "total_tokens": len(prompt) + len(produced) + 1,
        "prompt_tokens_details": {"cached_tokens": 3},
    }


async def test_omitted_max_tokens_is_16(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = await complete(client)
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["choices"][0]["finish_reason"] == "length"
    long = await complete(client, prompt=[5] * (engine.max_model_len - 4))
    assert long["usage"]["completion_tokens"] == 4


async def test_samples_take_consecutive_seeds(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    answer = await complete(client, n=3, seed=41)
    assert [job[2].seed for job in engine.submitted] == [41, 42, 43]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({choice["text"] for choice in answer["choices"]}) == 3
    assert answer["usage"]["prompt_tokens"] == len(engine.tokenizer.encode("the fox"))
    assert answer["usage"]["completion_tokens"] == 48
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 3
    again = await complete(client, seed=42)
    assert again["choices"][0]["text"] == answer["choices"][1]["text"]


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("a", 1), (["a", "bb"], 2), ([5, 6, 7], 1), ([[5, 6], [7]], 2), ([[5]], 1)],
)
async def test_every_form_of_prompt(client: httpx.AsyncClient, prompt: Any, count: int) -> None:
    answer = await complete(client, prompt=prompt, n=2, max_tokens=2)
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * count))


async def test_stop_strings(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.reply = "one two three"
    answer = await complete(client, max_tokens=50, stop=["three", "two"])
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (
        "one ",
        "stop",
        "two",
    )


async def test_evaluation_harness_scoring(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    ids = engine.tokenizer.encode("the fox jumps")
    answer = await complete(
        client, prompt=[ids, ids], max_tokens=1, echo=True, logprobs=1, temperature=0, seed=1234
    )
    for choice in answer["choices"]:
        logprobs = choice["logprobs"]
        assert choice["text"].startswith("the fox jumps")
        assert len(logprobs["tokens"]) == len(ids) + 1
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["top_logprobs"][0] is None
        assert sum(logprobs["token_logprobs"][1:-1]) == pytest.approx(-0.5 * (len(ids) - 1))
        for logprob, top in zip(
            logprobs["token_logprobs"][1:-1], logprobs["top_logprobs"][1:-1], strict=True
        ):
            assert logprob == max(top.values())
        for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            assert choice["text"][offset:].startswith(token) or token.startswith("bytes:")


async def test_scoring_without_generating(client: httpx.AsyncClient) -> None:
    answer = await complete(client, max_tokens=0, echo=True, logprobs=0)
    choice = answer["choices"][0]
    assert choice["text"] == "the fox"
    assert choice["finish_reason"] == "length"
    assert "".join(choice["logprobs"]["tokens"]) == "the fox"
    assert answer["usage"]["completion_tokens"] == 0


async def test_returned_token_ids(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = await complete(client, return_token_ids=True, max_tokens=4)
    choice = answer["choices"][0]
    assert choice["prompt_token_ids"] == engine.tokenizer.encode("the fox")
    assert len(choice["token_ids"]) == 4


async def test_stream_adds_up_to_the_whole(client: httpx.AsyncClient) -> None:
    body = {"prompt": ["the fox", "dog"], "n": 2, "seed": 7, "echo": True, "logprobs": 2}
    body |= {"return_token_ids": True}
    whole = await complete(client, **body)
    events = await stream(
        client, "/v1/completions", body | {"stream_options": {"include_usage": True}}
    )
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"] == whole["usage"]
    assert all(event["usage"] is None for event in events[:-2])
    for expected in whole["choices"]:
        pieces = [
            event["choices"][0]
            for event in events[:-2]
            if event["choices"][0]["index"] == expected["index"]
        ]
        assert "".join(piece["text"] for piece in pieces) == expected["text"]
        streamed_ids = [token_id for piece in pieces for token_id in piece["token_ids"]]
        assert streamed_ids == expected["token_ids"]
        for key, entries in expected["logprobs"].items():
            assert [entry for piece in pieces for entry in piece["logprobs"][key]] == entries
        assert [piece["finish_reason"] for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1]["finish_reason"] == expected["finish_reason"]


async def test_continuous_usage(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = await stream(
        client, "/v1/completions", {"prompt": "the", "max_tokens": 3, "stream_options": options}
    )
    counts = [event["usage"]["completion_tokens"] for event in events[:-1]]
    assert counts == sorted(counts)
    assert counts[-1] == 3


async def test_sampling_settings_reach_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    settings = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": -1,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": -2,
        "frequency_penalty": 2,
        "logit_bias": {"7": -100},
        "stop_token_ids": [9],
        "ignore_eos": True,
        "min_tokens": 2,
        "max_tokens": 3,
        "seed": -1,
        "user": "someone",
        "metadata": {"a": "b"},
        "suffix": None,
        "best_of": 1,
    }
    await complete(client, **settings)
    sampling = engine.submitted[0][2]
    assert sampling.logit_bias == {7: -100.0}
    assert sampling.stop_token_ids == (9,)
    assert sampling.top_k == 0
    assert sampling.seed == 2**63 - 1
    assert sampling.ignore_eos
    assert (sampling.min_tokens, sampling.max_tokens) == (2, 3)
