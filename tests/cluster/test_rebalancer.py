"""Claims about the order of messages of a rebalance, without workers and weights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.server.fake_engine import tiny_spec

from janus_moe.cluster.deployment_plan import DeploymentPlan, this_host
from janus_moe.cluster.message_router import OnMessage
from janus_moe.cluster.rebalancer import Rebalancer
from janus_moe.config import EngineConfig
from janus_moe.errors import ConflictError
from janus_moe.messages import (
    DropEpoch,
    EpochFailed,
    EpochPrepared,
    ExpertLoad,
    FromWorker,
    PrepareEpoch,
    StepDone,
    ToInstance,
    UseEpoch,
)
from janus_moe.policy.placement import Placement
from janus_moe.spec import InstanceId

ATTENTION = [InstanceId(pool="attention", number=i) for i in range(2)]
EXPERTS = [InstanceId(pool="expert", number=i) for i in range(2)]
FIRST = (((0, 1, 2, 3), (4, 5, 6, 7)),)
SWAPPED = [[[4, 5, 6, 7], [0, 1, 2, 3]]]

DEADLINE_S = 30.0  # planning compiles on first use, on a machine that may be busy


class FakeWorkers:
    """Records what is sent; says what a test puts into it."""

    def __init__(self) -> None:
        self.sent: list[ToInstance] = []
        self.said: asyncio.Queue[FromWorker] = asyncio.Queue()
        self.on_message: list[OnMessage] = []

    def send(self, message: ToInstance) -> None:
        self.sent.append(message)

    async def receive(self) -> FromWorker:
        message = await self.said.get()
        for take in self.on_message:
            take(message)
        return message

    async def receive_forever(self) -> None:
        while True:
            await self.receive()

    async def close(self) -> None:
        pass

    async def expect(self, count: int) -> list[ToInstance]:
        """The next `count` messages, and that there are no more."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.sent) < count:
                await asyncio.sleep(0)
        await asyncio.sleep(0.02)
        sent, self.sent = self.sent, []
        assert len(sent) == count, sent
        return sent


@asynccontextmanager
async def rebalancing(**settings: Any) -> AsyncIterator[tuple[Rebalancer, FakeWorkers]]:
    """Two attention and two expert instances, eight experts, one spare slot."""
    config = EngineConfig(attention_instances=2, expert_instances=2, **settings)
    plan = DeploymentPlan(
        config=config,
        spec=tiny_spec(10, 10),
        folder=Path(),
        placement=Placement(epoch=0, num_experts=8, slots=FIRST),
        spare_slots=2,
        num_kv_blocks=1,
        max_model_len=1,
        hosts=(this_host(config),),
        choices=(),
    )
    rebalancer, workers = Rebalancer(plan), FakeWorkers()
    async with rebalancer.running(workers):
        pump = asyncio.create_task(workers.receive_forever())
        yield rebalancer, workers
        pump.cancel()


def prepared(number: int, epoch: int) -> EpochPrepared:
    return EpochPrepared(instance=EXPERTS[number], epoch=epoch)


def step(epoch: int, number: int) -> StepDone:
    return StepDone(
        instance=ATTENTION[number],
        outputs=(),
        num_running=0,
        num_waiting=0,
        kv_usage=0.0,
        num_preemptions=0,
        epoch=epoch,
    )


async def test_all_prepare_then_attention_uses_it_then_the_next_step() -> None:
    async with rebalancing() as (rebalancer, workers):
        status = await rebalancer.rebalance(SWAPPED)
        assert (status.state, status.target_epoch, status.num_steps) == ("loading", 2, 2)
        for epoch in (1, 2):
            orders = await workers.expect(2)
            assert [type(order) for order in orders] == [PrepareEpoch] * 2
            assert {order.epoch for order in orders} == {epoch}  # type: ignore[union-attr]
            workers.said.put_nowait(prepared(0, epoch))
            workers.said.put_nowait(prepared(0, epoch))
            await workers.expect(0)
            workers.said.put_nowait(prepared(1, epoch))
            orders = await workers.expect(2)
            assert orders == [UseEpoch(instance=i, epoch=epoch) for i in ATTENTION]
            assert rebalancer.status.state == "switching"
            workers.said.put_nowait(step(epoch - 1, 0))
            workers.said.put_nowait(step(epoch, 1))
            await workers.expect(0)
            assert rebalancer.status.state == "switching", (
                "attention 0 may compute with the old one"
            )
            workers.said.put_nowait(step(epoch, 0))
        await workers.expect(0)
        assert rebalancer.status.state == "idle" and rebalancer.status.error is None
        assert [list(map(list, layer)) for layer in rebalancer.placement.slots] == SWAPPED


async def test_a_failure_makes_all_forget_the_epoch_and_its_number_is_not_used_again() -> None:
    async with rebalancing() as (rebalancer, workers):
        await rebalancer.rebalance(SWAPPED)
        await workers.expect(2)
        workers.said.put_nowait(prepared(0, 1))
        workers.said.put_nowait(EpochFailed(instance=EXPERTS[1], epoch=1, error="no disk"))
        assert await workers.expect(2) == [DropEpoch(instance=i, epoch=1) for i in EXPERTS]
        assert rebalancer.status.state == "idle" and rebalancer.placement.epoch == 0
        assert rebalancer.status.error == "expert 1 could not prepare epoch 1: no disk"
        await rebalancer.rebalance(SWAPPED)
        assert {order.epoch for order in await workers.expect(2)} == {3}  # type: ignore[union-attr]
        workers.said.put_nowait(prepared(1, 1))  # late, of the epoch that was given up
        workers.said.put_nowait(prepared(0, 3))
        await workers.expect(0)
        workers.said.put_nowait(prepared(1, 3))
        await workers.expect(2)


async def test_an_instance_that_never_answers_is_named() -> None:
    async with rebalancing(startup_timeout=0.1) as (rebalancer, workers):
        await rebalancer.rebalance(SWAPPED)
        workers.said.put_nowait(prepared(0, 1))
        assert len(await workers.expect(4)) == 4
        assert rebalancer.status.state == "idle"
        assert "expert 1 did not prepare epoch 1" in (rebalancer.status.error or "")


async def test_an_attention_instance_that_does_not_switch_is_named_and_waited_for() -> None:
    async with rebalancing(startup_timeout=0.1) as (rebalancer, workers):
        await rebalancer.rebalance(SWAPPED)
        await workers.expect(2)
        for index in range(2):
            workers.said.put_nowait(prepared(index, 1))
        workers.said.put_nowait(step(1, 0))
        async with asyncio.timeout(DEADLINE_S):
            while rebalancer.status.state != "idle":
                await asyncio.sleep(0.01)
        assert rebalancer.status.error is not None
        assert "attention 1 did not take epoch 1 within" in rebalancer.status.error
        assert rebalancer.placement.epoch == 1, "attention 0 computes with it already"
        with pytest.raises(ConflictError, match="attention 1 may still compute with an epoch bef"):
            await rebalancer.rebalance(SWAPPED)
        workers.said.put_nowait(step(1, 1))
        await workers.expect(2)
        assert (await rebalancer.rebalance(SWAPPED)).state == "loading"


async def test_what_was_being_planned_when_the_pools_change_is_not_begun() -> None:
    async with rebalancing() as (rebalancer, workers):
        asked = asyncio.create_task(rebalancer.rebalance(SWAPPED))
        await asyncio.sleep(0)  # it plans in a thread
        assert await rebalancer.stop(at_once=True) == 0
        with pytest.raises(ConflictError, match="the pools have changed"):
            await asked
        await workers.expect(0)
        assert rebalancer.status.state == "idle"
        with pytest.raises(ConflictError, match="while the pools change"):
            await rebalancer.rebalance(SWAPPED)
        rebalancer.allow(6)
        assert (await rebalancer.rebalance(SWAPPED)).target_epoch == 8


async def test_without_statistics_there_is_nothing_to_go_by() -> None:
    async with rebalancing() as (rebalancer, workers):
        with pytest.raises(ConflictError, match="no statistics"):
            await rebalancer.rebalance()
        assert rebalancer.status.state == "idle" and not workers.sent


async def test_the_schedule_moves_hot_experts_apart_and_then_leaves_them() -> None:
    hot = ExpertLoad(
        num_batches=(100,), num_tokens=(400,), tokens=((300, 300, 100, 100, 0, 0, 0, 0),)
    )
    async with rebalancing(rebalance_interval=0.05) as (rebalancer, workers):
        await workers.expect(0)
        workers.said.put_nowait(hot)
        while rebalancer.placement.epoch == 0 or rebalancer.status.state != "idle":
            for order in await workers.expect(2):
                if isinstance(order, PrepareEpoch):
                    workers.said.put_nowait(prepared(order.instance.number, order.epoch))
                elif isinstance(order, UseEpoch):
                    workers.said.put_nowait(step(order.epoch, order.instance.number))
            await asyncio.sleep(0.02)
        left, right = rebalancer.placement.slots[0]
        assert len({0, 1, 2, 3} & set(left)) == len({0, 1, 2, 3} & set(right)) == 2
        workers.said.put_nowait(msgspec.structs.replace(hot))
        await asyncio.sleep(0.2)
        await workers.expect(0)


async def test_a_change_of_routing_is_looked_at_without_waiting_for_the_schedule() -> None:
    tokens = ((300, 300, 100, 100, 0, 0, 0, 0),)
    hot = ExpertLoad(num_batches=(100,), num_tokens=(400,), tokens=tokens)
    async with rebalancing(rebalance_interval=60.0) as (_, workers):
        workers.said.put_nowait(hot)
        await workers.expect(0)
        workers.said.put_nowait(msgspec.structs.replace(hot, changed=True))
        assert {type(order) for order in await workers.expect(2)} == {PrepareEpoch}
