"""Claims: a service records the routing that the undivided model computes, and the file can be
replayed."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Model
from tests.e2e.harness import Completion, complete, running, running_in_threads

from janus_moe.cli import main
from janus_moe.engine.engine import WARM_UP_TOKENS, Engine
from janus_moe.policy.routing_trace import RoutingTrace

PROMPTS = [[7], [30, 31, 32, 33, 34], list(range(40, 70)), [200, 3]]
NUM_TOKENS = 10
SETTINGS: dict[str, Any] = {
    "attention_instances": 2,
    "expert_instances": 3,
    "threads": 1,
    "max_model_len": 64,
    "kv_cache_memory_bytes": 2**20,
    "prefix_caching": "off",
}


async def serve_all(engine: Engine) -> list[Completion]:
    return await asyncio.gather(
        *(
            complete(engine, f"r{i}", p, max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)
            for i, p in enumerate(PROMPTS)
        )
    )


def rows(per_layer: list[list[list[int]]]) -> Counter[tuple[tuple[int, ...], ...]]:
    """Each token's experts in all layers, so that no token can be mixed with another."""
    return Counter(
        tuple(tuple(sorted(ids)) for ids in token) for token in zip(*per_layer, strict=True)
    )


def expected(
    model: Model, completions: list[Completion], attention_instances: int = 2
) -> Counter[tuple[tuple[int, ...], ...]]:
    """By transformers; a completion's last token never enters the model. Each attention instance
    begins with a request of the engine's own."""
    warm_up = [0] * WARM_UP_TOKENS
    warm_up.append(int(model.oracle.logits(warm_up)[-1].argmax()))
    total: Counter[tuple[tuple[int, ...], ...]] = Counter()
    texts = [[*p, *c.token_ids[:-1]] for p, c in zip(PROMPTS, completions, strict=True)]
    for ids in [*texts, *[warm_up] * attention_instances]:
        total += rows([layer.tolist() for layer in model.oracle.routing(ids)])
    return total


async def test_the_file_holds_the_routing_of_every_token(qwen3: Model, tmp_path: Path) -> None:
    path = tmp_path / "routing.jrt"
    async with running_in_threads(
        qwen3.folder, record_routing=str(path), transport="loopback", **SETTINGS
    ) as engine:
        completions = await serve_all(engine)
    trace = RoutingTrace.load(path)
    assert (trace.num_layers, trace.top_k) == (3, engine.spec.moe.router.top_k)
    assert trace.batch_sizes.min() >= 1 and trace.batch_sizes.max() > 1
    assert rows(trace.ids.tolist()) == expected(qwen3, completions)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


async def test_real_processes_leave_a_file_to_replay(
    qwen3: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "routing.jrt"
    shape = {"attention_instances": 1, "expert_instances": 2, "transport": "shm"}
    settings = SETTINGS | shape | {"record_routing": str(path)}
    async with running(qwen3.folder, **settings) as service:
        completions = await serve_all(service.engine)
    assert rows(RoutingTrace.load(path).ids.tolist()) == expected(qwen3, completions, 1)
    flags = ["--expert-instances", "2", "--batch-sizes", "4", "--batches", "2"]
    assert main(["simulate", "routing", str(path), *flags]) == 0
    assert "exact" in capsys.readouterr().out


async def test_recording_ends_at_its_bound_while_the_service_goes_on(
    qwen3: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "routing.jrt"
    with caplog.at_level(logging.WARNING, "janus_moe.experts.recording"):
        async with running_in_threads(
            qwen3.folder,
            record_routing=str(path),
            record_routing_tokens=20,
            transport="shm",
            **SETTINGS,
        ) as engine:
            first = await serve_all(engine)
            await until(path.exists)
            trace = RoutingTrace.load(path)
            again = await serve_all(engine)
    assert [c.token_ids for c in first] == [c.token_ids for c in again]
    assert trace.num_tokens == 20
    assert (RoutingTrace.load(path).ids == trace.ids).all()
    assert not rows(trace.ids.tolist()) - expected(qwen3, first)
    assert caplog.text.count("routing of 20 tokens was recorded") == 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
