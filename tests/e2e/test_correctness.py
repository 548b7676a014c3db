"""Claim: whatever the shape and the transport, the pools give the undivided model's tokens."""

from __future__ import annotations

import asyncio
import random

import pytest
from tests.checkpoints import NUM_BYTES, VOCAB_SIZE
from tests.e2e.conftest import Model
from tests.e2e.harness import complete, running, running_in_threads

from janus_moe.policy.batching import StepPlan

QUICK = {
    "test_pools_match_undivided_model": {
        "qwen3-1A1E-shm",
        "qwen3-tied-2A3E-loopback",
        "deepseek-v2-3A2E-shm",
        "deepseek-v3-2A3E-shm",
    },
    "test_micro_batches_match_undivided_model": {"qwen3-2A3E-shm", "deepseek-v3-2A2E-gloo"},
    "test_processes_match_undivided_model": {"2A3E-shm"},
}
"""Cases of every run; the other models, shapes and transports are slow."""
SHAPES = {"1A1E": (1, 1), "2A3E": (2, 3), "3A2E": (3, 2)}
ALL_SHAPES = {**SHAPES, "2A2E": (2, 2)}
NUM_PROMPTS = 28
NUM_TOKENS = 75
KV_BLOCKS = 40  # of 4 tokens, per attention instance: far below what the requests want


def prompts() -> list[list[int]]:
    """Mixed lengths from 1 token to several chunks; some begin alike."""
    generator = random.Random(5)
    result: list[list[int]] = []
    for index in range(NUM_PROMPTS):
        own = [generator.randrange(NUM_BYTES) for _ in range(generator.choice([1, 2, 7, 23, 60]))]
        shared = result[index // 2][:32] if index % 3 == 2 else []
        result.append(shared + own)
    return result


@pytest.mark.parametrize("transport", ["loopback", "shm"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_pools_match_undivided_model(model: Model, shape: str, transport: str) -> None:
    """2,100 greedy tokens and their logits, through chunked prefill, prefix hits, preemption."""
    await _check_pools(model, shape, transport, NUM_TOKENS)


@pytest.mark.parametrize(("shape", "transport"), [("2A3E", "shm"), ("2A2E", "gloo")])
async def test_micro_batches_match_undivided_model(
    model: Model, shape: str, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for steps in two parts that take turns, wherever there are two sequences."""
    parts, split = list[int](), StepPlan.micro_batches

    def counted(plan: StepPlan, threshold: int) -> tuple[StepPlan, ...]:
        result = split(plan, threshold)
        parts.append(len(result))
        return result

    monkeypatch.setattr(StepPlan, "micro_batches", counted)
    await _check_pools(model, shape, transport, num_tokens=24, micro_batch_threshold=2)
    assert parts.count(2) > len(parts) / 2


async def _check_pools(
    model: Model, shape: str, transport: str, num_tokens: int, micro_batch_threshold: int = 0
) -> None:
    attention, expert = ALL_SHAPES[shape]
    spec_bytes = _kv_bytes_per_block(model)
    async with running_in_threads(
        model.folder,
        attention_instances=attention,
        expert_instances=expert,
        transport=transport,
        threads=1,
        block_size=4,
        max_num_seqs=8,
        max_num_batched_tokens=24,
        max_model_len=160,
        kv_cache_memory_bytes=spec_bytes * KV_BLOCKS,
        micro_batch_threshold=micro_batch_threshold,
    ) as engine:
        everything = prompts()

        async def one(name: str, prompt_ids: list[int]) -> int:
            completion = await complete(
                engine,
                name,
                prompt_ids,
                max_tokens=num_tokens,
                temperature=0,
                ignore_eos=True,
                logprobs=VOCAB_SIZE,
            )
            assert len(completion.token_ids) == num_tokens
            model.oracle.check_greedy(prompt_ids, completion)
            return completion.num_cached_tokens

        await asyncio.gather(*(one(f"request-{i}", p) for i, p in enumerate(everything)))
        snapshot = engine.snapshot()
        assert snapshot.preemptions > 0, "the tiny cache must force preemption"
        assert snapshot.kv_usage == 0.0
        assert snapshot.generation_tokens == NUM_PROMPTS * num_tokens
        longest = max(everything, key=len)
        await one("fills the cache", longest)
        assert await one("meets it again", longest) >= len(longest) // 2


@pytest.mark.parametrize(
    ("shape", "transport"), [("1A1E", "loopback"), ("1A1E", "shm"), ("2A3E", "shm")]
)
async def test_processes_match_undivided_model(qwen3: Model, shape: str, transport: str) -> None:
    """The same through real worker processes."""
    attention, expert = SHAPES[shape]
    async with running(
        qwen3.folder,
        attention_instances=attention,
        expert_instances=expert,
        transport=transport,
        max_model_len=160,
    ) as service:
        everything = prompts()[:8]

        async def one(index: int) -> None:
            completion = await complete(
                service.engine,
                f"request-{index}",
                everything[index],
                max_tokens=40,
                temperature=0,
                ignore_eos=True,
                logprobs=VOCAB_SIZE,
            )
            qwen3.oracle.check_greedy(everything[index], completion)

        await asyncio.gather(*(one(index) for index in range(len(everything))))


def _kv_bytes_per_block(model: Model) -> int:
    from janus_moe.model.config import read_spec
    from janus_moe.model.memory import kv_block_bytes

    return kv_block_bytes(read_spec(model.folder, "float32"), block_size=4)
