"""The choice of plans among instances: one decides, all follow, sums do not depend on it."""

from __future__ import annotations

import itertools
import math
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import torch
from tests.transport.network.local_network import LocalNetwork

from janus_moe.errors import ConfigError, ExchangeClosed
from janus_moe.planner.latency.links import tcp_links
from janus_moe.policy.exchange_choice import NUM_BUCKETS, ChoiceRule, pack
from janus_moe.spec import EXCHANGE_PLANS, InstanceId, Membership, PoolShape
from janus_moe.transport import AttentionPort, Combined, ExchangeLayout, ReplyMetadata, WaitRule
from janus_moe.transport.exchange_plans import Topology
from janus_moe.transport.exchange_plans.program import RowBytes
from janus_moe.transport.lockstep.control_block import ControlBlock, control_block_bytes
from janus_moe.transport.network.exchange import NetworkExchange
from janus_moe.transport.network.plan_selection import (
    FixedPlan,
    PlanChooser,
    plan_in,
    predicted_times,
)

HIDDEN, MAX_TOKENS = 4, 32
ROW = RowBytes(dispatch=4096, reply=4096)
RULE = WaitRule(timeout_s=20.0)
LAYOUT = ExchangeLayout(
    membership=Membership.on_hosts((0, 0, 1), (1, 2, 2, 3, 3)),
    hidden_size=HIDDEN,
    dtype="float32",
    max_tokens=MAX_TOKENS,
)


class Rotating:
    """Another plan for every step and every batch size."""

    def __init__(self) -> None:
        self._draw = random.Random(0)
        self.seen: list[tuple[int, float]] = []

    @property
    def packed_plans(self) -> int:
        return pack(self._draw.randrange(4) for _ in range(NUM_BUCKETS))

    def observe(self, tokens: int, seconds: float) -> str:
        self.seen.append((tokens, seconds))
        return f"after {tokens} tokens"


def fleet() -> list[NetworkExchange]:
    ranks = LAYOUT.shape.attention + LAYOUT.shape.expert
    network = LocalNetwork(ranks)
    instances = [InstanceId(pool="attention", number=i) for i in range(LAYOUT.shape.attention)]
    instances += [InstanceId(pool="expert", number=e) for e in range(LAYOUT.shape.expert)]
    return [
        NetworkExchange(LAYOUT, instance, network.channel(rank))
        for rank, instance in enumerate(instances)
    ]


def serve(end: NetworkExchange) -> None:
    """Doubles, and adds its number."""
    port = end.expert_port(LAYOUT.membership.rank(end.instance), RULE)
    with suppress(ExchangeClosed):
        while True:
            work = port.accept()
            if work is not None:
                port.reply(work, 2 * work.hidden + end.instance.number, ReplyMetadata(1, 2))


def take_part(
    port: AttentionPort, index: int, schedule: list[tuple[int, ...]]
) -> list[list[Combined]]:
    steps = []
    for step, counts in enumerate(schedule):
        port.begin_step(counts[index])
        layers = []
        for layer in range(3 if counts[index] else 0):
            hidden = torch.full((counts[index], HIDDEN), float(step + 10 * layer + 100 * index))
            combined = port.combine(port.dispatch(layer, hidden))
            assert torch.equal(combined.hidden, 10 * hidden + 10)
            layers.append(combined)
        steps.append(layers)
    return steps


def test_plans_may_change_with_every_step_and_all_instances_follow_the_first() -> None:
    draw = random.Random(1)
    sizes = [0, 0, 1, 2, 7, MAX_TOKENS]
    schedule = [tuple(draw.choice(sizes) for _ in range(3)) for _ in range(30)]
    ends = fleet()
    ends[0].source = source = Rotating()
    with ThreadPoolExecutor(len(ends)) as threads:
        experts = [threads.submit(serve, end) for end in ends[3:]]
        ports = [end.attention_port(index, RULE) for index, end in enumerate(ends[:3])]
        taking = [threads.submit(take_part, port, i, schedule) for i, port in enumerate(ports)]
        history = [future.result(60) for future in taking]
        ends[0].shutdown()
        for expert in experts:
            expert.result(60)
        for end in ends:
            end.close()
    used = set()
    for step in range(len(schedule)):
        plans = {combined.plan for instance in history for combined in instance[step]}
        assert len(plans) == any(schedule[step])
        used |= plans
    assert used == set(EXCHANGE_PLANS)
    observed = [sum(counts) for counts in schedule[:-1] if counts[0]]
    assert [tokens for tokens, _ in source.seen] == observed[: len(source.seen)]
    assert len(source.seen) >= len(observed) - 1 and all(s > 0 for _, s in source.seen)
    notices = [combined.notice for layers in history[0] for combined in layers if combined.notice]
    assert notices[0] == f"after {observed[0]} tokens"
    assert not any(combined.notice for layers in history[1] for combined in layers)


def test_the_board_keeps_the_plans_of_two_steps() -> None:
    shape = PoolShape(attention=2, expert=1)
    control_block = ControlBlock(
        Membership.first(shape), memoryview(bytearray(control_block_bytes(shape))).cast("q")
    )
    words = [0, 2**32 - 1, 5, 2**31, 0, 7]
    for step, (before, packed_plans) in enumerate(itertools.pairwise(words)):
        control_block.announce(0, step, 1, 0, before)
        control_block.announce(0, step + 1, 1, 0, packed_plans)
        control_block.announce(1, step + 1, 1, 0)
        assert (control_block.plans(step), control_block.plans(step + 1)) == (before, packed_plans)


def test_a_fixed_plan_is_that_of_every_batch() -> None:
    for plan in EXCHANGE_PLANS:
        assert {plan_in(FixedPlan(plan).packed_plans, tokens) for tokens in (0, 1, 77, 10**6)} == {
            plan
        }


def test_the_choice_follows_the_price_of_links_and_then_the_measured_times() -> None:
    topology = Topology((0, 0), (1, 1))
    chooser = PlanChooser(topology, ROW, tcp_links(), ChoiceRule(trials=2, window=3, reach=4.0))
    cheap, dear = plan_in(chooser.packed_plans, 1), plan_in(chooser.packed_plans, 2**14)
    assert cheap == "1pc" and dear != "1pc"
    took = {"1pc": 3.0, "2pc-direct": 2.0, "2pc-sharded": 1.0}
    notices = [
        chooser.observe(2**14, took[plan_in(chooser.packed_plans, 2**14)]) for _ in range(12)
    ]
    assert plan_in(chooser.packed_plans, 2**14) == "2pc-sharded" and chooser.settled(2**14)
    assert plan_in(chooser.packed_plans, 1) == cheap
    told = [notice for notice in notices if notice]
    assert told == [told[0]] if dear != "2pc-sharded" else not told
    assert all("of up to 16384 tokens: 2pc-sharded (1000000 us) instead of" in n for n in told)


def test_times_of_fewer_tokens_are_those_of_a_full_batch_but_for_the_tokens() -> None:
    """As the cost model grows, so that a batch that fills up looks neither slower nor faster."""
    topology = Topology((0, 0), (1, 1))
    chooser = PlanChooser(topology, ROW, tcp_links())
    plan = EXCHANGE_PLANS.index(plan_in(chooser.packed_plans, 600))
    low, high = (chooser.predicted[bucket][plan] for bucket in (9, 10))
    chooser.observe(768, (low + high) / 2)
    assert chooser.choices[10].times[plan] == pytest.approx((high,))


def test_plans_that_do_the_same_are_one() -> None:
    times = predicted_times(Topology((0, 0), (1, 1)), 64, ROW, tcp_links())
    assert math.isinf(times[EXCHANGE_PLANS.index("2pc-relay")])
    alone = predicted_times(Topology((0,), (0,)), 64, ROW, tcp_links())
    assert sum(map(math.isfinite, alone)) == 1


def test_unknown_coefficients_are_refused() -> None:
    with pytest.raises(ConfigError, match="not wire_s"):
        ExchangeLayout(
            membership=Membership.on_hosts((0,), (0,)),
            hidden_size=4,
            dtype="float32",
            max_tokens=1,
            links={"wire_s": 1.0},
        )
