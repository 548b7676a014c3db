from __future__ import annotations

import httpx
import pytest
from tests.server.fake_engine import FakeEngine, FakeScaleController

from janus_moe.engine.refusal import Refusal
from janus_moe.errors import ConflictError, RequestError


@pytest.fixture
def controller(engine: FakeEngine) -> FakeScaleController:
    engine.scale_controller = FakeScaleController()
    return engine.scale_controller


async def test_sizes_that_are_left_out_stay(
    client: httpx.AsyncClient, controller: FakeScaleController
) -> None:
    for body in (
        {"attention_instances": 2, "expert_instances": 5, "drain_timeout": 1.5},
        {"attention_instances": 4},
        {},
    ):
        answer = await client.post("/scale", json=body)
        assert answer.status_code == 202
        assert answer.json()["generation"] == 7
    assert controller.asked == [(2, 5, 1.5), (4, None, 30.0), (None, None, 30.0)]


async def test_status_and_abort(client: httpx.AsyncClient, controller: FakeScaleController) -> None:
    assert (await client.get("/scale")).json()["expert"][1]["number"] == 6
    assert (await client.delete("/scale")).status_code == 202
    assert controller.asked == ["abort"]


async def test_refusals_say_why(client: httpx.AsyncClient, controller: FakeScaleController) -> None:
    controller.refusal = ConflictError("a change is under way: opening")
    for answer in (await client.post("/scale", json={}), await client.delete("/scale")):
        assert answer.status_code == 409
        assert "opening" in answer.json()["error"]["message"]
    controller.refusal = RequestError("9 attention instances are too many", "attention_instances")
    answer = await client.post("/scale", json={"attention_instances": 9})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "attention_instances"
    for body in (
        {"attention_instances": -1},
        {"expert_instances": "2"},
        {"attention": 2},
        {"drain_timeout": -1},
    ):
        assert (await client.post("/scale", json=body)).status_code == 400


async def test_a_service_that_cannot_change_says_what_to_do(client: httpx.AsyncClient) -> None:
    for answer in (await client.get("/scale"), await client.post("/scale", json={})):
        assert answer.status_code == 409
        assert "--transport shm" in answer.json()["error"]["message"]


async def test_health_says_what_is_missing_and_ready_that_requests_are_refused(
    client: httpx.AsyncClient, engine: FakeEngine, controller: FakeScaleController
) -> None:
    controller.degraded = "1 of 2 expert instances; replacements are started"
    answer = await client.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "degraded": controller.degraded}
    assert (await client.get("/ready")).status_code == 200
    engine.refusal = Refusal("no attention instance is left", 5.0)
    assert (await client.get("/health")).status_code == 200
    answer = await client.get("/ready")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "5"
