"""Claims about totals: they are by id, they never fall, and they say what the workers said."""

from __future__ import annotations

import pytest
from tests.engine.fake_workers import ATTENTION, EXPERTS, MEMBERSHIP, step, tokens

from janus_moe.engine.counters import EngineCounters
from janus_moe.engine.load import InstanceLoads
from janus_moe.engine.snapshot import EngineSnapshot
from janus_moe.messages import ExpertActivity
from janus_moe.spec import InstanceId, Membership

SMALLER = Membership(
    generation=5,
    attention=ATTENTION[1:],
    expert=(EXPERTS[0], EXPERTS[2]),
    attention_hosts=(0,),
    expert_hosts=(0, 0),
)


def activity(
    layers: int, *counts: int, experts: tuple[InstanceId, ...] = EXPERTS
) -> ExpertActivity:
    activated = dict(zip(experts, counts, strict=True))
    return ExpertActivity(layers=layers, max_activated=max(counts), activated=activated)


def snapshot(counters: EngineCounters, membership: Membership = MEMBERSHIP) -> EngineSnapshot:
    return counters.snapshot(membership, InstanceLoads(membership.attention, 1).observed, 0)


def test_nothing_has_happened_yet() -> None:
    seen = snapshot(EngineCounters())
    assert seen.activated_experts == dict.fromkeys(EXPERTS, 0.0)
    assert (seen.expert_load_imbalance, seen.max_activated_experts) == (0.0, 0.0)


def test_steps_tokens_and_times_are_summed() -> None:
    counters = EngineCounters()
    for instance in ATTENTION:
        counters.add(step(instance, tokens("a", "xyz"), dispatch_seconds=0.25), MEMBERSHIP)
    counters.add(step(ATTENTION[0], combine_seconds=2.0), MEMBERSHIP)
    seen = snapshot(counters)
    assert seen.generation_tokens == 6
    assert (seen.dispatch.count, seen.dispatch.total_s, seen.combine.total_s) == (3, 0.5, 2.0)


def test_activated_experts_are_means_by_expert_instance_and_busiest_over_mean() -> None:
    counters = EngineCounters()
    counters.add(step(ATTENTION[0], activity=activity(2, 8, 4, 6)), MEMBERSHIP)
    counters.add(step(ATTENTION[1], activity=activity(2, 4, 4, 4)), MEMBERSHIP)
    seen = snapshot(counters)
    assert seen.activated_experts == {EXPERTS[0]: 3.0, EXPERTS[1]: 2.0, EXPERTS[2]: 2.5}
    assert (seen.layer_passes, seen.max_activated_experts) == (4, 3.0)
    assert seen.expert_load_imbalance == pytest.approx(12 / (6 + 4))


def test_no_total_falls_when_an_instance_goes() -> None:
    counters = EngineCounters()
    for instance, preemptions in zip(ATTENTION, (5, 2), strict=True):
        done = step(instance, tokens("a", "xy"), num_preemptions=preemptions, epoch=3)
        counters.add(done, MEMBERSHIP)
    done = step(ATTENTION[0], activity=activity(1, 3, 9, 3), num_preemptions=6)
    counters.add(done, MEMBERSHIP)
    before, after = snapshot(counters), snapshot(counters, SMALLER)
    for total in ("preemptions", "generation_tokens", "layer_passes", "placement_epoch"):
        assert getattr(after, total) == getattr(before, total), total
    assert after.preemptions == 6 + 2, "what each last reported"
    assert after.expert_load_imbalance == before.expert_load_imbalance
    assert after.dispatch == before.dispatch
    assert after.pool_sizes == {"attention": 1, "expert": 2}
    assert after.activated_experts == {EXPERTS[0]: 3.0, EXPERTS[2]: 3.0}


def test_means_of_an_instance_are_over_the_passes_it_took_part_in() -> None:
    counters = EngineCounters()
    counters.add(step(ATTENTION[0], activity=activity(10, 20, 20, 20)), MEMBERSHIP)
    two = (EXPERTS[0], EXPERTS[2])
    counters.add(step(ATTENTION[1], activity=activity(10, 40, 40, experts=two)), SMALLER)
    assert snapshot(counters).activated_experts == {
        EXPERTS[0]: 3.0,
        EXPERTS[1]: 2.0,
        EXPERTS[2]: 3.0,
    }
    assert snapshot(counters).expert_load_imbalance == 1.0


def test_the_lowest_rank_stands_for_all_where_plans_of_the_exchange_are_counted() -> None:
    counters = EngineCounters()
    for instance in ATTENTION:
        counters.add(step(instance, exchange_plan="1pc"), MEMBERSHIP)
    assert snapshot(counters).exchange_steps == {"1pc": 1}
    counters.add(step(ATTENTION[1], exchange_plan="2pc-relay"), SMALLER)
    seen = snapshot(counters, SMALLER)
    assert seen.exchange_steps == {"1pc": 1, "2pc-relay": 1}
    assert seen.exchange_plan == "2pc-relay"
