"""Claims about the load of attention instances as the engine sees it, and where requests go."""

from __future__ import annotations

from tests.engine.fake_workers import ATTENTION, step

from janus_moe.engine.load import InstanceLoads, ObservedLoad

FIRST, SECOND = ATTENTION
CAPACITY = 100


def test_requests_alternate_between_equal_members() -> None:
    loads = InstanceLoads(ATTENTION, CAPACITY)
    chosen = []
    for _ in range(4):
        instance = loads.choose([1])
        assert instance is not None
        loads.sent(instance, 1)
        chosen.append(instance)
    assert chosen == [FIRST, SECOND, FIRST, SECOND]


def test_what_was_sent_counts_until_it_has_ended() -> None:
    loads = InstanceLoads(ATTENTION, CAPACITY)
    loads.sent(FIRST, 10)
    assert loads.observed[FIRST] == ObservedLoad(num_requests=1, unstarted_tokens=10)
    loads.started(FIRST, 10)
    assert loads.choose([1]) == SECOND, "it still computes one"
    loads.ended(FIRST)
    assert loads.observed[FIRST] == ObservedLoad()


def test_a_full_cache_turns_requests_away() -> None:
    loads = InstanceLoads(ATTENTION, CAPACITY)
    loads.sent(SECOND, 1)
    loads.report(step(FIRST, kv_usage=0.95, num_running=2))
    assert loads.observed[FIRST].num_running == 2
    assert loads.choose([1]) == SECOND
    loads.report(step(FIRST, kv_usage=0.1))
    assert loads.choose([1]) == FIRST


def test_prompts_not_yet_started_weigh_on_the_cache() -> None:
    loads = InstanceLoads(ATTENTION, CAPACITY)
    loads.sent(FIRST, CAPACITY)
    loads.ended(FIRST)  # the count is equal again; the tokens still wait
    assert loads.choose([1]) == SECOND


def test_equal_prefixes_go_to_one_member_whichever_ids_there_are() -> None:
    loads = InstanceLoads(ATTENTION, CAPACITY)
    homes = {loads.choose([seed] * 64) for seed in range(40)}
    assert homes == set(ATTENTION)
    assert loads.choose([7] * 64) == loads.choose([*[7] * 64, 1, 2, 3])
