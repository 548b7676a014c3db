from __future__ import annotations

import httpx
from tests.server.conftest import MakeClient
from tests.server.fake_engine import FakeEngine

from janus_moe.errors import ConflictError, RequestError
from janus_moe.messages import ExpertLoad


async def test_placement_shows_experts_replicas_and_the_rebalance(
    client: httpx.AsyncClient,
) -> None:
    answer = (await client.get("/expert_placement")).json()
    assert answer["epoch"] == 7
    assert answer["layers"] == [
        {"layer": 0, "instances": [[0], [1], [0, 1]], "replicas": [2, 2]},
    ]
    assert answer["rebalance"]["state"] == "idle" and answer["rebalance"]["error"] is None


async def test_load_is_empty_before_the_first_report(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    assert (await client.get("/expert_load")).json()["layers"] == []
    engine.placement_controller.load = ExpertLoad(
        num_batches=(2,), num_tokens=(8,), tokens=((6, 2),)
    )
    answer = (await client.get("/expert_load")).json()
    assert answer["layers"] == [
        {"layer": 0, "batches": 2, "tokens": 8, "counts": [6, 2], "share": [0.75, 0.25]}
    ]
    assert answer["activated_experts_per_instance"] == [4.0, 5.5]


async def test_rebalance_is_accepted_with_and_without_a_placement(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    for content in (b"", b"{}", b'{"placement": [[[0], [1]]]}'):
        answer = await client.post("/rebalance", content=content)
        assert answer.status_code == 202
        assert answer.json()["target_epoch"] == 9
    assert engine.placement_controller.asked == [None, None, [[[0], [1]]]]


async def test_refusals_have_their_status(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.placement_controller.refusal = ConflictError("a rebalance to epoch 9 is under way")
    answer = await client.post("/rebalance")
    assert answer.status_code == 409 and "epoch 9" in answer.json()["error"]["message"]
    engine.placement_controller.refusal = RequestError("expert 99 of layer 0", "placement")
    answer = await client.post("/rebalance", json={"placement": [[[99]]]})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "placement"
    bodies: tuple[object, ...] = ({"placement": [[["a"]]]}, {"placement": [[[-1]]]}, {"plan": 1})
    for body in (*bodies, []):
        assert (await client.post("/rebalance", json=body)).status_code == 400


async def test_the_key_is_needed_and_a_loading_service_refuses(
    make_client: MakeClient, engine: FakeEngine
) -> None:
    client = make_client(api_key="k")
    for method, path in (
        ("POST", "/rebalance"),
        ("GET", "/expert_load"),
        ("GET", "/expert_placement"),
    ):
        assert (await client.request(method, path)).status_code == 401
        engine.status = "loading"
        key = {"Authorization": "Bearer k"}
        assert (await client.request(method, path, headers=key)).status_code == 503
        engine.status = "ready"
    assert engine.placement_controller.asked == []
