"""Real clients against the real server on the bundled model, offline."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from openai import BadRequestError, OpenAI
from tests.e2e.oracle import Oracle
from tests.e2e.server_process import ServerProcess, serving
from transformers import AutoTokenizer

from janus_moe.model.source import resolve_model

PROMPT = "def main(argv):\n    "


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving("--expert-instances", "2", "--served-model-name", "janus") as process:
        process.wait_until_ready()
        yield process


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(resolve_model("bundled"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(resolve_model("bundled"))


def test_openai_client_lists_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["janus"]


def test_openai_client_completes_as_the_undivided_model(
    client: OpenAI, oracle: Oracle, tokenizer: Any
) -> None:
    answer = client.completions.create(
        model="janus", prompt=PROMPT, max_tokens=24, temperature=0, extra_body={"ignore_eos": True}
    )
    prompt_ids = tokenizer.encode(PROMPT)
    ids = list(prompt_ids)
    for _ in range(24):
        ids.append(int(oracle.logits(ids)[-1].argmax()))
    assert answer.choices[0].text == tokenizer.decode(ids[len(prompt_ids) :])
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt_ids), 24)


def test_openai_client_streams_completions(client: OpenAI) -> None:
    request = {"model": "janus", "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
    whole = client.completions.create(**request).choices[0].text  # type: ignore[call-overload]
    stream = client.completions.create(
        **request, stream=True, stream_options={"include_usage": True}
    )  # type: ignore[call-overload]
    chunks = list(stream)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole
    assert len(chunks) > 3, "text must come in pieces"
    assert chunks[-1].usage.completion_tokens <= 16


def test_openai_client_chats(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "write a loop"}]
    answer = client.chat.completions.create(
        model="janus", messages=messages, max_completion_tokens=12, temperature=0
    )
    assert answer.choices[0].message.role == "assistant"
    chunks = list(
        client.chat.completions.create(
            model="janus",
            messages=messages,
            max_completion_tokens=12,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == answer.choices[0].message.content
    assert chunks[-1].usage is not None


def test_seeded_sampling_repeats_beside_other_requests(client: OpenAI) -> None:
    def sample() -> str:
        answer = client.completions.create(
            model="janus", prompt=PROMPT, max_tokens=20, temperature=1.0, top_p=0.95, seed=11
        )
        return str(answer.choices[0].text)

    alone = sample()
    others = [threading.Thread(target=sample) for _ in range(4)]
    for thread in others:
        thread.start()
    together = sample()
    for thread in others:
        thread.join()
    assert alone == together


def test_lm_eval_request_gets_transformers_logprobs(
    server: ServerProcess, oracle: Oracle, tokenizer: Any
) -> None:
    """What lm-eval's `local-completions` sends for a loglikelihood."""
    batch = [tokenizer.encode(text) for text in ("import os\nimport sys\n", "class A:\n    pass")]
    for ids in batch:
        body = {
            "model": "janus",
            "prompt": [ids],
            "temperature": 0,
            "max_tokens": 1,
            "logprobs": 1,
            "echo": True,
            "seed": 1234,
        }
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
        logprobs = answer["choices"][0]["logprobs"]
        expected = torch.log_softmax(oracle.logits(ids), dim=-1)
        wanted = [float(expected[i, token]) for i, token in enumerate(ids[1:])]
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["token_logprobs"][1 : len(ids)] == pytest.approx(wanted, abs=2e-3)
        best = [float(row.max()) for row in expected[: len(ids) - 1]]
        tops = [max(top.values()) for top in logprobs["top_logprobs"][1 : len(ids)]]
        assert tops == pytest.approx(best, abs=2e-3)
    info = httpx.get(f"{server.url}/tokenizer_info", timeout=10)
    assert info.status_code == 200


def test_disconnect_frees_the_request(server: ServerProcess) -> None:
    body = {"model": "janus", "prompt": PROMPT, "max_tokens": 1500, "ignore_eos": True}
    for stream in (True, False):
        with httpx.Client(timeout=60) as http:
            if stream:
                with http.stream(
                    "POST", f"{server.url}/v1/completions", json={**body, "stream": True}
                ) as response:
                    next(response.iter_lines())
            else:
                with pytest.raises(httpx.TimeoutException):
                    http.post(f"{server.url}/v1/completions", json=body, timeout=0.3)
        deadline = time.monotonic() + 10
        while gauge(server, "vllm:num_requests_running") or gauge(
            server, "vllm:kv_cache_usage_perc"
        ):
            assert time.monotonic() < deadline, "the request still holds its cache"
            time.sleep(0.05)


def test_metrics_count_tokens(server: ServerProcess, client: OpenAI) -> None:
    before = gauge(server, "vllm:generation_tokens_total")
    client.completions.create(model="janus", prompt=PROMPT, max_tokens=7)
    assert gauge(server, "vllm:generation_tokens_total") >= before + 1
    assert gauge(server, "janus:activated_experts_per_instance") > 0


def test_experts_move_on_demand_while_tokens_stream(server: ServerProcess) -> None:
    """The answer is the same before, during and after; the routes show what happens."""

    def ask() -> str:
        body = {"prompt": PROMPT, "max_tokens": 150, "temperature": 0, "ignore_eos": True}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        return str(answer.json()["choices"][0]["text"])

    before = ask()
    placement = httpx.get(f"{server.url}/expert_placement", timeout=10).json()
    swapped = [layer["instances"][::-1] for layer in placement["layers"]]
    answer = httpx.post(f"{server.url}/rebalance", json={"placement": swapped}, timeout=10)
    assert answer.status_code == 202 and answer.json()["num_steps"] > 1
    assert httpx.post(f"{server.url}/rebalance", timeout=10).status_code == 409
    deadline = time.monotonic() + 30
    while placement["epoch"] != answer.json()["target_epoch"]:
        assert ask() == before and time.monotonic() < deadline
        placement = httpx.get(f"{server.url}/expert_placement", timeout=10).json()
    assert [layer["instances"] for layer in placement["layers"]] == swapped
    assert gauge(server, "janus:placement_epoch") == placement["epoch"]
    load = httpx.get(f"{server.url}/expert_load", timeout=10).json()
    assert all(sum(layer["counts"]) == 4 * layer["tokens"] > 0 for layer in load["layers"])
    bad = httpx.post(f"{server.url}/rebalance", json={"placement": swapped[:2]}, timeout=10)
    assert bad.status_code == 400 and "of 2 layers" in bad.json()["error"]["message"]


BAD_REQUESTS: dict[str, dict[str, Any]] = {
    "prompt longer than the context": {"prompt": "x " * 6000, "max_tokens": 1},
    "huge n": {"prompt": "a", "n": 10**9},
    "temperature not a number": {"prompt": "a", "temperature": float("nan")},
    "empty prompt": {"prompt": ""},
    "no prompt": {"prompt": []},
    "token outside the vocabulary": {"prompt": [10**6]},
    "removed field": {"prompt": "a", "guided_json": {}},
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_requests_are_answered_and_survived(server: ServerProcess, case: str) -> None:
    body = json.dumps({"model": "janus", **BAD_REQUESTS[case]})
    answer = httpx.post(f"{server.url}/v1/completions", content=body, timeout=30)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["message"] and error["type"]
    assert httpx.get(f"{server.url}/health", timeout=5).status_code == 200


def test_invalid_json_and_unknown_model(server: ServerProcess, client: OpenAI) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", content=b"{nope", timeout=30)
    assert answer.status_code == 400
    unknown = httpx.post(
        f"{server.url}/v1/completions", json={"model": "gpt-9", "prompt": "a"}, timeout=30
    )
    assert unknown.status_code == 404
    assert "janus" in unknown.json()["error"]["message"]
    with pytest.raises(BadRequestError, match="temperature"):
        client.completions.create(model="janus", prompt="a", temperature=7)


def test_sigterm_drains(server: ServerProcess) -> None:
    """Last in this module: the request under way finishes, new ones are refused, exit status 0."""
    url, lines = server.url, list[str]()
    started = threading.Event()

    def stream() -> None:
        body = {"prompt": PROMPT, "max_tokens": 150, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
            for line in response.iter_lines():
                lines.append(line)
                started.set()

    thread = threading.Thread(target=stream)
    thread.start()
    assert started.wait(20)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    if server.process.poll() is None and thread.is_alive():
        assert httpx.get(f"{url}/health", timeout=5).status_code == 503
    thread.join(60)
    assert lines[-1] == "data: [DONE]" or lines[-2] == "data: [DONE]"
    assert server.ended(15) == 0


def gauge(server: ServerProcess, name: str) -> float:
    """Sum over all label sets of one metric."""
    text = httpx.get(f"{server.url}/metrics", timeout=10).text
    values = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(name + "{")]
    assert values, f"{name} is missing"
    return sum(map(float, values))
