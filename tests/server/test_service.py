from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.server.conftest import MakeClient
from tests.server.fake_engine import FakeEngine

from janus_moe import __version__


@pytest.mark.parametrize("path", ["/health", "/ready", "/ping"])
@pytest.mark.parametrize("status", ["loading", "draining", "dead", "ready"])
async def test_probes(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, status: str
) -> None:
    engine.status = status  # type: ignore[assignment]
    response = await client.get(path)
    assert response.status_code == (200 if status == "ready" else 503)
    assert response.json()["status"] == status
    assert (await client.head(path)).status_code == response.status_code


@pytest.mark.parametrize("status", ["loading", "draining", "dead"])
async def test_no_generation_unless_ready(
    client: httpx.AsyncClient, engine: FakeEngine, status: str
) -> None:
    engine.status = status  # type: ignore[assignment]
    response = await client.post("/v1/completions", json={"prompt": "a"})
    assert response.status_code == 503
    assert "retry-after" in response.headers
    assert response.json()["error"]["code"] == "unavailable"


async def test_models(client: httpx.AsyncClient, make_client: MakeClient) -> None:
    models = (await client.get("/v1/models")).json()
    assert models["object"] == "list"
    assert models["data"][0]["id"] == "tiny-moe"
    assert models["data"][0]["max_model_len"] == 512
    assert (await client.get("/v1/models/tiny-moe")).json()["id"] == "tiny-moe"
    assert (await client.get("/v1/models/other")).status_code == 404
    named = make_client(served_model_name="org/moe")
    assert (await named.get("/v1/models")).json()["data"][0]["id"] == "org/moe"
    assert (await named.get("/v1/models/org/moe")).status_code == 200


async def test_nothing_needs_the_tokenizer_while_loading(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.status = "loading"
    for path in ("/v1/models", "/tokenizer_info"):
        assert (await client.get(path)).status_code == 503
    assert (await client.get("/metrics")).status_code == 200
    assert (await client.get("/version")).json() == {"version": __version__}


async def test_api_key(make_client: MakeClient) -> None:
    client = make_client(api_key="sésame")
    for path in ("/health", "/ready", "/ping"):
        assert (await client.get(path)).status_code == 200
    key = "sésame".encode()
    wrong = [{}, {b"authorization": b"Bearer x"}, {b"authorization": key}]
    wrong += [{b"authorization": b"Basic " + key}, {b"authorization": b"Bearer "}]
    for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/version", "/nowhere"):
        for headers in wrong:
            response = await client.get(path, headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
    allowed = await client.get("/v1/models", headers={b"authorization": b"Bearer " + key})
    assert allowed.status_code == 200


async def test_docs_can_be_hidden(client: httpx.AsyncClient, make_client: MakeClient) -> None:
    document = (await client.get("/openapi.json")).json()
    body = document["paths"]["/v1/completions"]["post"]["requestBody"]
    assert "CompletionBody" in str(body)
    assert "CompletionBody" in document["components"]["schemas"]
    assert (await client.get("/docs")).status_code == 200
    hidden = make_client(disable_fastapi_docs=True)
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert (await hidden.get(path)).status_code == 404


async def test_tokenize(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    body = {"prompt": "the fox", "return_token_strs": True, "add_special_tokens": False}
    answer = (await client.post("/tokenize", json=body)).json()
    assert answer["tokens"] == engine.tokenizer.encode("the fox")
    assert answer["count"] == len(answer["tokens"])
    assert "".join(answer["token_strs"]) == "the fox"
    assert answer["max_model_len"] == 512
    back = await client.post("/detokenize", json={"tokens": answer["tokens"]})
    assert back.json() == {"prompt": "the fox"}
    chat = await client.post("/tokenize", json={"messages": [{"role": "user", "content": "x"}]})
    assert chat.json()["tokens"][0] == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": [{}]}),
        ("/tokenize", {"prompt": 3}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": [10**6]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": "x"}),
    ],
)
async def test_bad_tokenization(client: httpx.AsyncClient, path: str, body: object) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == 400
    assert "error" in response.json()


async def test_tokenizer_info(client: httpx.AsyncClient) -> None:
    info = (await client.get("/tokenizer_info")).json()
    assert info["eos_token"] == "<|im_end|>"
    assert "im_start" in info["chat_template"]


async def test_metrics(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.reply = "the fox jumps"
    await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 50})
    await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2, "n": 2})
    engine.fail_after = 1
    await client.post("/v1/completions", json={"prompt": "a"})
    text = (await client.get("/metrics")).text
    samples = {
        (sample.name, *sorted(set(sample.labels.items()) - {("model_name", "tiny-moe")})): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    num_tokens = len(engine.tokenizer.encode("the fox jumps")) + 1
    assert samples["vllm:num_requests_running",] == 0
    assert samples["vllm:num_requests_waiting",] == 2
    assert samples["vllm:kv_cache_usage_perc",] == 0.25
    assert samples["vllm:prompt_tokens_total",] == 11
    assert samples["vllm:generation_tokens_total",] == 22
    assert samples["vllm:num_preemptions_total",] == 1
    assert samples["janus:requests_readmitted_total",] == 6
    assert samples["vllm:request_success_total", ("finished_reason", "stop")] == 1
    assert samples["vllm:request_success_total", ("finished_reason", "length")] == 2
    assert samples["vllm:request_success_total", ("finished_reason", "abort")] == 1
    assert samples["vllm:time_to_first_token_seconds_count",] == 4
    assert samples["vllm:inter_token_latency_seconds_count",] == num_tokens - 1 + 2
    assert samples["vllm:request_time_per_output_token_seconds_count",] == 3
    assert samples["vllm:e2e_request_latency_seconds_count",] == 3
    assert samples["vllm:request_queue_time_seconds_count",] == 4
    assert samples["vllm:request_queue_time_seconds_sum",] == 1.0
    assert samples["janus:pool_size", ("pool", "expert")] == 3
    assert samples["janus:activated_experts_per_instance", ("instance", "1")] == 5.5
    assert samples["janus:expert_load_imbalance",] == 1.2
    assert samples["janus:dispatch_seconds_count",] == 10
    assert samples["janus:dispatch_seconds_sum",] == 0.5
    assert samples["janus:placement_epoch",] == 7
    assert samples["janus:exchange_plan", ("plan", "1pc")] == 1
    assert samples["janus:exchange_plan", ("plan", "2pc-direct")] == 0
    assert samples["janus:exchange_steps_total", ("plan", "2pc-direct")] == 3
