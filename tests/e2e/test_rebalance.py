"""Claims: experts move under load and no token changes; a failure leaves the old epoch serving."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.checkpoints import NUM_BYTES, VOCAB_SIZE, make_checkpoint, write_tokenizer
from tests.e2e.conftest import Model
from tests.e2e.harness import complete, running, running_in_threads
from tests.e2e.oracle import Oracle

from janus_moe.engine.engine import Engine
from janus_moe.errors import CheckpointError, ConflictError, RequestError
from janus_moe.model.piecewise import Piece

Slots = list[list[list[int]]]

SHAPES = {"1A2E": (1, 2), "2A3E": (2, 3)}
WAIT_S = 20.0


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Eight experts in each of three layers."""
    folder = tmp_path_factory.mktemp("eight") / "model"
    make_checkpoint(folder, "qwen3_moe", seed=3, num_experts=8, tie_word_embeddings=False)
    write_tokenizer(folder)
    return Model(folder, Oracle(folder))


def spread(engine: Engine, seed: int) -> Slots:
    """A random valid placement that fills the slots; layers differ."""
    draw, now = random.Random(seed), engine.placement_controller.placement
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
    return [
        [list(experts) for experts in layer]
        for layer in engine.placement_controller.placement.slots
    ]


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

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits, and fails at once when a request has failed."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                for task in self._tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.005)

    async def finish(self, count: int) -> None:
        """Waits for so many more requests."""
        goal = self.done + count
        await self.until(lambda: self.done >= goal)


@pytest.mark.parametrize(
    ("transport", "micro_batch_threshold"), [("loopback", 0), ("shm", 0), ("shm", 2)]
)
@pytest.mark.parametrize("shape", SHAPES)
async def test_no_token_changes_while_experts_move(
    eight: Model, shape: str, transport: str, micro_batch_threshold: int
) -> None:
    """To very different placements and back to the first, in small pieces, one after the other."""
    attention, expert = SHAPES[shape]
    async with running_in_threads(
        eight.folder,
        attention_instances=attention,
        expert_instances=expert,
        transport=transport,
        redundant_experts=1 if expert == 2 else 3,
        threads=1,
        max_num_batched_tokens=64,
        max_model_len=160,
        kv_cache_memory_bytes=2**22,
        rebalance_bytes_per_step=2**13,
        micro_batch_threshold=micro_batch_threshold,
    ) as engine:
        pool = engine.placement_controller
        first = held(engine)
        targets = [spread(engine, seed) for seed in range(3)]
        async with Load(engine, eight) as load:
            await load.finish(2)
            for target in [*targets, first]:
                status = await pool.rebalance(target)
                assert status.num_steps > 0 and status.target_epoch > pool.placement.epoch
                with pytest.raises(ConflictError, match=f"epoch {status.target_epoch} is under"):
                    await pool.rebalance(target)
                await load.until(lambda: pool.status.state == "idle")
                assert pool.status.error is None
                assert held(engine) == target
                assert pool.placement.epoch == engine.snapshot().placement_epoch
                assert pool.placement.epoch == status.target_epoch
                await load.finish(1)


@pytest.mark.parametrize("transport", ["loopback", "shm"])
async def test_a_failure_half_way_leaves_the_old_epoch_serving(
    eight: Model, transport: str
) -> None:
    """Loading fails in a later step of the move; after that, the rest of it can still be done."""
    loaded = 0
    healthy = asyncio.Event()

    def load_piece(piece: Piece) -> None:
        nonlocal loaded
        loaded += 1
        if loaded > 20 and not healthy.is_set():
            raise CheckpointError("the disk is on fire")
        piece.load()

    async with running_in_threads(
        eight.folder,
        load_piece,
        expert_instances=2,
        transport=transport,
        redundant_experts=0,
        threads=1,
        max_model_len=160,
        kv_cache_memory_bytes=2**22,
    ) as engine:
        pool = engine.placement_controller
        target = [layer[::-1] for layer in held(engine)]
        async with Load(engine, eight) as load:
            status = await pool.rebalance(target)
            assert status.num_steps >= 3
            await load.until(lambda: pool.status.state == "idle")
            assert "the disk is on fire" in (pool.status.error or "")
            assert "expert " in (pool.status.error or "")
            left_at = pool.placement.epoch
            assert 0 < left_at < status.target_epoch, "some steps were taken, not all"
            await load.finish(4)
            assert engine.snapshot().placement_epoch == left_at
            healthy.set()
            second = await pool.rebalance(target)
            assert second.target_epoch > status.target_epoch, "epochs are never used twice"
            await load.until(lambda: pool.status.state == "idle")
            assert pool.status.error is None
            assert held(engine) == target


async def test_a_changed_checkpoint_is_noticed_by_real_processes(
    eight: Model, tmp_path: Path
) -> None:
    """Truncated, then gone: never a crash, never another model's weights."""
    folder = tmp_path / "model"
    shutil.copytree(eight.folder, folder)
    weights = folder / "model.safetensors"
    async with running(
        folder, expert_instances=2, threads=1, max_model_len=160, kv_cache_memory_bytes=2**22
    ) as service:
        engine, pool = service.engine, service.engine.placement_controller
        first = held(engine)
        target = [layer[::-1] for layer in first]
        async with Load(engine, eight, streams=2) as load:
            for size, complaint in ((100, "changed since the start"), (None, "No such file")):
                if size is None:
                    weights.unlink()
                else:
                    os.truncate(weights, size)
                await pool.rebalance(target)
                await load.until(lambda: pool.status.state == "idle")
                assert complaint in (pool.status.error or "")
                assert str(tmp_path) not in (pool.status.error or "")
                assert held(engine) == first and pool.placement.epoch == 0
        assert load.done, "requests go on"


@pytest.mark.slow
async def test_by_the_load_and_back_with_real_processes(eight: Model) -> None:
    """2A3E over shared memory: a rebalance that the statistics ask for, and random ones."""
    async with running(
        eight.folder,
        attention_instances=2,
        expert_instances=3,
        threads=1,
        max_model_len=160,
        kv_cache_memory_bytes=2**22,
    ) as service:
        engine, pool = service.engine, service.engine.placement_controller
        first = held(engine)
        async with Load(engine, eight) as load:
            await load.until(lambda: pool.load is not None and sum(pool.load.num_tokens) > 0)
            for target in (None, spread(engine, 5), first):
                await pool.rebalance(target)
                await load.until(lambda: pool.status.state == "idle")
                assert pool.status.error is None
                assert target is None or held(engine) == target
        assert pool.load is not None
        spec = engine.spec
        for tokens, counts in zip(pool.load.num_tokens, pool.load.tokens, strict=True):
            assert sum(counts) == tokens * spec.moe.router.top_k


@pytest.mark.parametrize("transport", ["loopback", "shm"])
async def test_an_idle_service_switches_too(eight: Model, transport: str) -> None:
    """Several epochs without a step in between; then the tokens are still right."""
    async with running_in_threads(
        eight.folder,
        attention_instances=2,
        expert_instances=2,
        redundant_experts=0,
        threads=1,
        max_model_len=160,
        transport=transport,
    ) as engine:
        pool, first = engine.placement_controller, held(engine)
        for target in ([layer[::-1] for layer in first], first, spread(engine, 1)):
            assert (await pool.rebalance(target)).num_steps >= 2
            await until(lambda: pool.status.state == "idle")
            assert pool.status.error is None and held(engine) == target
            assert engine.snapshot().placement_epoch == pool.placement.epoch
        async with Load(engine, eight, streams=2) as load:
            await load.finish(2)


async def test_placements_that_cannot_be_met_are_refused_with_numbers(eight: Model) -> None:
    async with running_in_threads(
        eight.folder, expert_instances=2, redundant_experts=0, threads=1, max_model_len=64
    ) as engine:
        pool = engine.placement_controller
        good = held(engine)
        last = pool.placement.num_experts - 1
        for bad, complaint in (
            (good[:-1], f"of {len(good) - 1} layers .* this service has {len(good)}"),
            ([[layer[0]] for layer in good], "have no slot, the first is expert"),
            ([[[*a, *b], b] for a, b in good], rf"{last + 1} experts on instance 0, which has \d"),
            ([[[*a, 99], b] for a, b in good], f"expert 99 .* from 0 to {last}"),
            ([[[*a, a[0]], b] for a, b in good], "two replicas on instance 0"),
        ):
            with pytest.raises(RequestError, match=complaint):
                await pool.rebalance(bad)
        assert (await pool.rebalance(good)).num_steps == 0
        assert pool.status.state == "idle"


async def test_without_a_spare_slot_nothing_moves(eight: Model) -> None:
    async with running_in_threads(
        eight.folder, expert_instances=2, rebalance_spare_slots=0, threads=1, max_model_len=64
    ) as engine:
        with pytest.raises(ConflictError, match="0 spare slots"):
            await engine.placement_controller.rebalance()
