"""Claim: nothing takes an id for a rank. Instances whose numbers are no positions serve alike."""

from __future__ import annotations

import asyncio

import pytest
from tests.checkpoints import NUM_BYTES, VOCAB_SIZE
from tests.e2e.conftest import Model
from tests.e2e.harness import complete, serving_in_threads

from janus_moe.cluster import service as service_module
from janus_moe.cluster.deployment_plan import Host
from janus_moe.cluster.host_facts import host_facts
from janus_moe.cluster.hosts.shares import LOCAL, HostShare
from janus_moe.config import EngineConfig

ATTENTION, EXPERTS = (3, 8), (2, 5, 6)


@pytest.mark.parametrize("transport", ["loopback", "shm", "gloo"])
async def test_ids_that_are_no_ranks_serve_rebalance_and_are_counted(
    qwen3: Model, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def oddly_numbered(config: EngineConfig) -> Host:
        return Host(HostShare(LOCAL, ATTENTION, EXPERTS), host_facts(config.device))

    monkeypatch.setattr(service_module, "this_host", oddly_numbered)
    async with serving_in_threads(
        qwen3.folder,
        attention_instances=len(ATTENTION),
        expert_instances=len(EXPERTS),
        transport=transport,
        threads=1,
        max_model_len=160,
        kv_cache_memory_bytes=2**22,
    ) as service:
        engine, controller = service.engine, service.engine.placement_controller

        async def one(index: int) -> None:
            prompt = [(7 * index + position) % NUM_BYTES for position in range(9)]
            completion = await complete(
                engine,
                f"request {index}",
                prompt,
                max_tokens=24,
                temperature=0,
                ignore_eos=True,
                logprobs=VOCAB_SIZE,
            )
            qwen3.oracle.check_greedy(prompt, completion)

        await asyncio.gather(*map(one, range(4)))
        moved = [[*layer[1:], layer[0]] for layer in controller.placement.slots]
        await controller.rebalance(moved)
        async with asyncio.timeout(60):
            while controller.status.state != "idle":
                await asyncio.sleep(0.01)
        assert controller.status.error is None
        await asyncio.gather(*map(one, range(4, 8)))
        snapshot = engine.snapshot()
        assert [instance.number for instance in snapshot.activated_experts] == list(EXPERTS)
        assert min(snapshot.activated_experts.values()) > 0
        assert {instance.number for instance in engine.counters.preemptions} == set(ATTENTION)
        assert [list(map(list, layer)) for layer in controller.placement.slots] == [
            list(map(list, layer)) for layer in moved
        ]
