"""Claim: which replica computes an expert changes no token, under any activation policy."""

from __future__ import annotations

import asyncio
from typing import get_args

import pytest
from tests.checkpoints import VOCAB_SIZE
from tests.e2e.conftest import Model
from tests.e2e.harness import complete, running_in_threads

from janus_moe.spec import ActivationPolicy, DevicePolicy, ExpertPolicy, Policy, ReplicaPolicy

PROMPTS = [[7], [30, 31, 32, 33, 34], list(range(40, 70)), [200, 3]]


def test_the_setting_knows_every_policy() -> None:
    assert get_args(ActivationPolicy) == (*get_args(Policy), "token-aware")
    for some in (ExpertPolicy, DevicePolicy, ReplicaPolicy):
        assert set(get_args(some)) < set(get_args(Policy))


@pytest.mark.parametrize("policy", get_args(ActivationPolicy))
async def test_no_token_depends_on_the_policy(qwen3: Model, policy: str) -> None:
    """2A3E; five experts in ten slots, so that the policies have much to choose."""
    async with running_in_threads(
        qwen3.folder,
        attention_instances=2,
        expert_instances=3,
        transport="shm",
        redundant_experts=5,
        activation_policy=policy,
        activation_expert_ns=1000,
        activation_token_ns=1500,  # of token-aware: sharing a prompt's experts pays
        threads=1,
        max_model_len=64,
        kv_cache_memory_bytes=2**20,
    ) as engine:

        async def one(index: int) -> None:
            completion = await complete(
                engine,
                f"request-{index}",
                PROMPTS[index],
                max_tokens=12,
                temperature=0,
                ignore_eos=True,
                logprobs=VOCAB_SIZE,
            )
            qwen3.oracle.check_greedy(PROMPTS[index], completion)

        await asyncio.gather(*(one(index) for index in range(len(PROMPTS))))
