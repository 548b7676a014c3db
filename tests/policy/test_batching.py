"""Continuous batching: single situations, stated one by one."""

from __future__ import annotations

import pytest

from janus_moe.errors import RequestError, ServiceError
from janus_moe.policy.batching import Batcher, Sequence, StepPlan
from janus_moe.policy.paging import BlockManager


def batcher(num_blocks: int = 100, max_num_seqs: int = 8, max_num_tokens: int = 16) -> Batcher:
    blocks = BlockManager(num_blocks, 4, enable_prefix_caching=True)
    return Batcher(blocks, max_num_seqs, max_num_tokens)


def request(name: str, length: int, first_token: int = 0) -> Sequence:
    return Sequence(name, list(range(first_token, first_token + length)), length)


def shape(plan: StepPlan) -> list[tuple[str, int, int]]:
    return [(s.sequence.request_id, s.start, s.num_tokens) for s in plan.scheduled]


def step(batch: Batcher, token: int = 7) -> StepPlan:
    plan = batch.plan()
    batch.commit(plan, {s.sequence.request_id: token for s in plan.scheduled if s.samples})
    batch.check()
    return plan


def test_prefill_is_chunked_and_only_its_end_samples() -> None:
    batch = batcher(max_num_tokens=10)
    sequence = request("a", 25)
    batch.add(sequence)
    plans = [step(batch) for _ in range(4)]
    assert [shape(p) for p in plans] == [
        [("a", 0, 10)],
        [("a", 10, 10)],
        [("a", 20, 5)],
        [("a", 25, 1)],
    ]
    assert [p.scheduled[0].samples for p in plans] == [False, False, True, True]
    assert sequence.token_ids[25:] == [7, 7] and sequence.num_computed == 26


def test_decodes_go_first_and_prefill_gets_the_rest_of_the_budget() -> None:
    batch = batcher(max_num_tokens=10)
    batch.add(request("long", 15))
    step(batch)
    batch.add(request("short", 2, 100))
    step(batch)
    batch.add(request("late", 30, 200))
    plan = step(batch)
    assert shape(plan) == [("long", 15, 1), ("short", 2, 1), ("late", 0, 8)]
    assert (plan.num_decodes, plan.num_tokens) == (2, 10)
    assert plan.scheduled[2].token_ids == list(range(200, 208))


def test_micro_batches_are_the_plan_in_two_parts_of_whole_sequences() -> None:
    batch = batcher(max_num_tokens=16)
    for name, length in (("a", 1), ("b", 1), ("c", 9), ("d", 3)):
        batch.add(request(name, length))
    step(batch)
    batch.add(request("e", 4, 50))
    plan = batch.plan()
    assert (plan.num_decodes, plan.num_tokens) == (4, 8)
    assert plan.micro_batches(0) == plan.micro_batches(9) == (plan,)
    first, second = plan.micro_batches(8)
    assert first.scheduled + second.scheduled == plan.scheduled
    assert (first.num_decodes, first.num_tokens) == (4, 4)
    assert (second.num_decodes, second.num_tokens) == (0, 4)
    slots = [part.slot_mapping(4).tolist() for part in (first, second)]
    assert slots[0] + slots[1] == plan.slot_mapping(4).tolist()
    assert first.micro_batches(2)[0].num_decodes == first.micro_batches(2)[1].num_decodes == 2


def test_one_sequence_stays_whole() -> None:
    batch = batcher()
    batch.add(request("long", 15))
    plan = batch.plan()
    assert plan.micro_batches(2) == (plan,)


def test_num_seqs_is_respected() -> None:
    batch = batcher(max_num_seqs=2)
    for name in "abc":
        batch.add(request(name, 2))
    step(batch)
    assert (batch.num_running, batch.num_waiting) == (2, 1)
    batch.finish("a")
    assert shape(step(batch))[1] == ("c", 0, 2)


def test_slots_are_in_the_plans_order() -> None:
    batch = batcher(max_num_tokens=10)
    batch.add(request("a", 5))
    step(batch)
    batch.add(request("b", 6, 100))
    plan = batch.plan()
    a, b = (s.sequence.blocks for s in plan.scheduled)
    expected = [a[1] * 4 + 1, *(b[p // 4] * 4 + p % 4 for p in range(6))]
    assert plan.slot_mapping(4).tolist() == expected


def test_the_latest_arrival_is_preempted_and_comes_back_first() -> None:
    batch = batcher(num_blocks=4)
    early, late = request("early", 7), request("late", 4, 100)
    batch.add(early)
    batch.add(late)
    batch.add(request("queued", 2, 200))
    step(batch)
    assert batch.num_running == 2
    preempted: list[str] = []
    while not preempted:
        preempted = list(step(batch).preempted)
    assert preempted == ["late"] and batch.num_preemptions == late.num_preemptions == 1
    assert late.num_computed == 0 and late.blocks == [] and len(late.token_ids) > 4
    batch.finish("early")
    plan = step(batch)
    assert plan.scheduled[-1].sequence.request_id == "queued"
    assert [s.request_id for s in batch.sequences] == ["late", "queued"]


def test_prefix_hits_skip_computation() -> None:
    batch = batcher()
    batch.add(request("a", 9))
    step(batch)
    hit = request("b", 9)
    batch.add(hit)
    assert ("b", 8, 1) in shape(step(batch)) and hit.num_cached_tokens == 8


def test_prompt_logits_are_computed_in_full() -> None:
    batch = batcher(max_num_tokens=32)
    batch.add(request("a", 9))
    step(batch)
    full = request("b", 9)
    full.needs_prompt_logits = True
    batch.add(full)
    assert ("b", 0, 9) in shape(step(batch)) and full.num_cached_tokens == 0


def test_abort_between_plan_and_commit_is_skipped() -> None:
    batch = batcher()
    sequence = request("a", 3)
    batch.add(sequence)
    plan = batch.plan()
    batch.abort("a")
    batch.abort("unknown")
    batch.commit(plan, {})
    batch.check()
    assert not batch.has_work and len(sequence.token_ids) == 3


def test_what_cannot_run_is_refused() -> None:
    batch = batcher(num_blocks=2)
    assert batch.fits(8) and not batch.fits(9)
    with pytest.raises(RequestError, match="9 tokens do not fit in the KV cache of 8"):
        batch.add(request("a", 9))
    with pytest.raises(RequestError, match="at least one token"):
        batch.add(request("a", 0))
    batch.add(request("a", 8))
    with pytest.raises(RequestError, match="already"):
        batch.add(request("a", 8))


def test_outgrowing_the_cache_is_an_error_not_a_loop() -> None:
    batch = batcher(num_blocks=1)
    batch.add(request("a", 4))
    step(batch)
    with pytest.raises(ServiceError, match="outgrown"):
        step(batch)
