"""Claims about requests that leave their attention instance while a whole service runs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.e2e.conftest import Model
from tests.e2e.harness import Completion, complete, running, running_in_threads

from janus_moe.engine.engine import Engine

TOKENS = 40
REQUESTS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.8, "seed": 3, "logprobs": 1},
    {"temperature": 1.2, "seed": 4, "top_k": 20, "frequency_penalty": 0.8},
    {"temperature": 0, "repetition_penalty": 1.4, "prompt_logprobs": 1},
    {"temperature": 0, "stop": ("no such text",), "presence_penalty": 0.5},
    {"temperature": 0.5, "seed": 9, "min_tokens": 30},
]


async def answers(engine: Engine, name: str) -> list[Completion]:
    """All requests at once."""
    prompts = [list(range(10 * n, 10 * n + 7 + n)) for n in range(len(REQUESTS))]
    common = {"max_tokens": TOKENS, "ignore_eos": True}
    return await asyncio.gather(
        *(
            complete(engine, f"{name}-{n}", prompt, **(common | options))
            for n, (prompt, options) in enumerate(zip(prompts, REQUESTS, strict=True))
        )
    )


async def moved_about(engine: Engine, name: str) -> list[Completion]:
    """The same while each attention instance in turn is emptied and goes on."""
    under_way = asyncio.create_task(answers(engine, name))
    turn = 0
    while not under_way.done():
        leaving = engine.membership.attention[turn % 2]
        engine.move_requests(leaving)
        generated = engine.snapshot().generation_tokens
        while not under_way.done() and engine.snapshot().generation_tokens < generated + 25:
            await asyncio.sleep(0.001)
        engine.resume_instance(leaving)
        turn += 1
    assert engine.snapshot().readmissions >= 2 * len(REQUESTS)
    return await under_way


def assert_same(moved: list[Completion], stayed: list[Completion]) -> None:
    for one, other in zip(moved, stayed, strict=True):
        assert one.token_ids == other.token_ids and len(one.token_ids) == TOKENS
        assert one.text == other.text
        assert (one.finish_reason, one.stop_reason) == (other.finish_reason, other.stop_reason)
        assert [entry.token_id for entry in one.logprobs] == [e.token_id for e in other.logprobs]
        assert (one.prompt_logprobs is None) == (other.prompt_logprobs is None)
        for left, right in zip(one.logprobs, other.logprobs, strict=True):
            assert left.logprob == pytest.approx(right.logprob, abs=1e-4)


async def test_requests_moved_about_give_the_tokens_of_those_that_stayed(model: Model) -> None:
    settings: dict[str, Any] = {"attention_instances": 2, "expert_instances": 2, "transport": "shm"}
    async with running_in_threads(model.folder, **settings) as engine:
        assert_same(await moved_about(engine, "moved"), await answers(engine, "stayed"))
        assert all(load.num_requests == 0 for load in engine.loads.observed.values())


@pytest.mark.slow
async def test_worker_processes_take_over_requests_from_each_other(qwen3: Model) -> None:
    settings = {"attention_instances": 2, "expert_instances": 1, "max_model_len": 128}
    async with running(qwen3.folder, **settings) as service:
        engine = service.engine
        assert_same(await moved_about(engine, "moved"), await answers(engine, "stayed"))
