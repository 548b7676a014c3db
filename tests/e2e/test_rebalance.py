"""Claims: experts move under load, no token changes, and what fails leaves the old epoch serving."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.checkpoints import NUM_BYTES, VOCAB_SIZE
from tests.e2e.conftest import Model
from tests.e2e.harness import complete, running, running_in_threads

from janus_moe.engine.engine import Engine
from janus_moe.errors import CheckpointError, ConflictError, RequestError
from janus_moe.model.piecewise import Piece

Slots = list[list[list[int]]]

SHAPES = {"1A2E": (1, 2), "2A3E": (2, 3)}
WAIT_S = 20.0


def spread(engine: Engine, seed: int) -> Slots:
    """A random valid placement that fills the slots; layers differ."""
    draw, now = random.Random(seed), engine.expert_pool.placement
    room = [len(experts) for experts in now.slots[0]]
    layers = []
    for _ in range(now.num_layers):
        instances: list[list[int]] = [[] for _ in room]
        for expert in draw.sample(range(now.num_experts), now.num_experts):
            roomy = [i for i, count in enumerate(room) if len(instances[i]) < count]
            instances[draw.choice(roomy)].append(expert)
        for experts, count in zip(instances, room, strict=True):
            others = [e for e in range(now.num_experts) if e not in experts]
            experts += draw.sample(others, count - len(experts))
        layers.append(instances)
    return layers


def held(engine: Engine) -> Slots:
    return [[list(experts) for experts in layer] for layer in engine.expert_pool.placement.slots]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


class Load:
    """Requests that come and go all the time, each judged by the oracle."""

    def __init__(self, engine: Engine, model: Model, streams: int = 4) -> None:
        self.engine, self.model = engine, model
        self.done = 0
        self._ending = False
        self._tasks = [asyncio.create_task(self._stream(i)) for i in range(streams)]

    async def _stream(self, index: int) -> None:
        draw = random.Random(index)
        while not self._ending:
            prompt = [draw.randrange(NUM_BYTES) for _ in range(draw.choice([1, 5, 30]))]
            completion = await complete(
                self.engine,
                f"{index}-{self.done}-{draw.random()}",
                prompt,
                max_tokens=30,
                temperature=0,
                ignore_eos=True,
                logprobs=VOCAB_SIZE,
            )
            assert len(completion.token_ids) == 30
            self.model.oracle.check_greedy(prompt, completion)
            self.done += 1

    async def __aenter__(self) -> Load:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ending = True
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*self._tasks)

    def check(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()


@pytest.mark.parametrize("transport", ["loopback", "shm"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_no_token_changes_while_experts_move(
    qwen3: Model, shape: str, transport: str
) -> None:
    """To very different placements and back to the first, in small pieces, one after the other."""
    attention, expert = SHAPES[shape]
    async with running_in_threads(
        qwen3.folder,
        attention_instances=attention,
        expert_instances=expert,
        transport=transport,
        redundant_experts=1 if expert == 2 else 3,
        threads=1,
        max_num_batched_tokens=64,
        max_model_len=160,
        kv_cache_memory_bytes=2**22,
        rebalance_bytes_per_step=2**13,
    ) as engine:
        pool = engine.expert_pool
        first = held(engine)
        targets = [spread(engine, seed) for seed in range(3)]
        async with Load(engine, qwen3) as load:
            await until(lambda: load.done >= 2)
            for target in [*targets, first]:
                status = await pool.rebalance(target)
                assert status.num_steps > 0 and status.target_epoch > pool.placement.epoch
                with pytest.raises(ConflictError, match=f"epoch {status.target_epoch} is under"):
                    await pool.rebalance(target)
                await until(lambda: pool.status.state == "idle" or load.check() is not None)
                assert pool.status.error is None
                assert held(engine) == target
                assert pool.placement.epoch == engine.snapshot().placement_epoch
                assert pool.placement.epoch == status.target_epoch
                done = load.done
                await until(lambda: load.done > done or load.check() is not None)
