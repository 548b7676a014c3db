"""The activation scheduler: compiled equals reference, and `exact` is optimal.

`test_rewriting` has what concerns every (token, k) rather than every expert.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from janus_moe.errors import ConfigError
from janus_moe.policy.activation import (
    Assignment,
    ExpertPolicy,
    LayerLayout,
    Scheduler,
    schedule,
)
from janus_moe.policy.activation.reference import schedule_reference

Ids = NDArray[np.int32]
POLICIES: tuple[ExpertPolicy, ...] = ("aebs", "exact")
ALL_POLICIES: tuple[ExpertPolicy, ...] = ("aebs", "exact", "metro", "random")


def layout_of(holders: list[list[int]], num_instances: int) -> LayerLayout:
    width = max(map(len, holders))
    return LayerLayout(np.array([h + [-1] * (width - len(h)) for h in holders]), num_instances)


def random_case(
    rng: np.random.Generator, num_experts: int, num_instances: int, max_replicas: int, tokens: int
) -> tuple[Ids, LayerLayout]:
    holders = []
    for _ in range(num_experts):
        replicas = int(rng.integers(1, min(max_replicas, num_instances) + 1))
        holders.append(sorted(rng.choice(num_instances, replicas, replace=False).tolist()))
    ids = rng.integers(-1, num_experts, (tokens, int(rng.integers(1, 5)))).astype(np.int32)
    return ids, layout_of(holders, num_instances)


def assert_equal(one: Assignment, other: Assignment) -> None:
    assert one.instance_of_expert.tolist() == other.instance_of_expert.tolist()
    assert one.activated.tolist() == other.activated.tolist()
    assert one.optimal == other.optimal


def assert_valid(assignment: Assignment, ids: Ids, layout: LayerLayout) -> None:
    active = set(ids.ravel().tolist()) - {-1}
    chosen = assignment.instance_of_expert
    assert set(np.flatnonzero(chosen >= 0).tolist()) == active
    assert all(chosen[e] in layout.holders[e] for e in active)
    counts = np.bincount(chosen[chosen >= 0], minlength=layout.num_instances)
    assert counts.tolist() == assignment.activated.tolist()


def can_hold(capacity: int, active: list[int], layout: LayerLayout) -> bool:
    """Whether no instance needs more than `capacity` experts: augmenting paths (Kuhn)."""
    members: list[list[int]] = [[] for _ in range(layout.num_instances)]

    def place(expert: int, seen: set[int]) -> bool:
        for holder in layout.holders[expert].tolist():
            if holder < 0 or holder in seen:
                continue
            seen.add(holder)
            if len(members[holder]) < capacity:
                members[holder].append(expert)
                return True
            for index, other in enumerate(members[holder]):
                if place(other, seen):
                    members[holder][index] = expert
                    return True
        return False

    return all(place(expert, set()) for expert in active)


def smallest_maximum(ids: Ids, layout: LayerLayout) -> int:
    active = sorted(set(ids.ravel().tolist()) - {-1})
    return next(c for c in itertools.count() if can_hold(c, active, layout))


def test_thousands_of_small_cases_vs_reference_and_optimum() -> None:
    rng = np.random.default_rng(0)
    num_repaired = 0
    for _ in range(3000):
        experts, instances = int(rng.integers(1, 24)), int(rng.integers(1, 9))
        ids, layout = random_case(rng, experts, instances, 3, int(rng.integers(0, 12)))
        best = smallest_maximum(ids, layout)
        answers = {policy: schedule(policy, ids, layout) for policy in ALL_POLICIES}
        for policy, answer in answers.items():
            assert_valid(answer, ids, layout)
            assert_equal(answer, schedule_reference(policy, ids, layout))
            assert not answer.optimal or answer.activated.max() == best
        greedy, exact = answers["aebs"], answers["exact"]
        assert exact.optimal and exact.activated.max() == best
        num_repaired += int(greedy.activated.max() > best)
    assert num_repaired > 100, "the cases must exercise the repair"


def test_brute_force_agrees_with_the_oracle() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        ids, layout = random_case(rng, 6, 3, 3, 4)
        active = sorted(set(ids.ravel().tolist()) - {-1})
        choices = [[h for h in layout.holders[e].tolist() if h >= 0] for e in active]
        best = min(max(map(c.count, c), default=0) for c in itertools.product(*choices))
        assert smallest_maximum(ids, layout) == best


def test_the_optimum_is_the_tightest_set_of_instances() -> None:
    """max over sets of instances of ceil(activated experts that live only there / size)."""
    rng = np.random.default_rng(2)
    for _ in range(300):
        instances = int(rng.integers(1, 6))
        ids, layout = random_case(rng, 14, instances, 3, 5)
        holders = [set(layout.holders[e].tolist()) - {-1} for e in set(ids.ravel().tolist()) - {-1}]
        tightest = max(
            -(-sum(h <= set(members) for h in holders) // size)
            for size in range(1, instances + 1)
            for members in itertools.combinations(range(instances), size)
        )
        assert schedule("exact", ids, layout).activated.max() == tightest


def test_a_limit_on_repairs_is_kept_and_told() -> None:
    rng = np.random.default_rng(3)
    told = 0
    for _ in range(300):
        ids, layout = random_case(rng, 20, 6, 3, 10)
        none, one, all_ = (
            Scheduler(layout, max_repairs=n).schedule(ids) for n in (0, 1, 2**31 - 1)
        )
        assert_equal(none, schedule("aebs", ids, layout))
        assert all_.activated.max() <= one.activated.max() <= none.activated.max()
        assert one.optimal <= (one.activated.max() == all_.activated.max())
        told += not none.optimal
    assert told > 10


@pytest.mark.parametrize("policy", ALL_POLICIES)
@pytest.mark.parametrize(
    ("experts", "instances", "replicas", "tokens"),
    [(256, 16, 2, 64), (1024, 64, 3, 200), (300, 100, 4, 100), (7, 65, 5, 9), (64, 1, 1, 500)],
)
def test_large_cases_vs_reference(
    policy: ExpertPolicy, experts: int, instances: int, replicas: int, tokens: int
) -> None:
    rng = np.random.default_rng(experts)
    for _ in range(3):
        ids, layout = random_case(rng, experts, instances, replicas, tokens)
        answer = schedule(policy, ids, layout)
        assert_valid(answer, ids, layout)
        assert_equal(answer, schedule_reference(policy, ids, layout))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_order_and_repetition_of_tokens_do_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids, layout = random_case(rng, 20, 6, 3, 10)
    shuffled = rng.permutation(np.concatenate([ids, ids, np.full_like(ids, -1)]))
    for policy in ALL_POLICIES:
        assert_equal(schedule(policy, ids, layout), schedule(policy, shuffled, layout))


def test_random_differs_by_seed_and_by_batch_only() -> None:
    rng = np.random.default_rng(4)
    layout = layout_of([[0, 1, 2, 3]] * 32, 4)
    whole = np.arange(32, dtype=np.int32)[:, None]
    chosen = {}
    for seed in range(50):
        scheduler = Scheduler(layout, "random", seed=seed)
        answer = scheduler.schedule(whole).instance_of_expert.tolist()
        assert_equal(scheduler.schedule(whole), schedule_reference("random", whole, layout, seed))
        chosen[seed] = answer
        fewer = scheduler.schedule(whole[rng.permutation(32)[:31]]).instance_of_expert.tolist()
        assert sum(a != b for a, b in zip(answer, fewer, strict=True)) > 5
    assert len(set(map(tuple, chosen.values()))) == 50
    counts = np.bincount(np.concatenate(list(chosen.values())), minlength=4)
    assert abs(counts - 400).max() < 80


def test_ties_go_to_the_lowest_instance() -> None:
    layout = layout_of([[0, 1, 2]] * 4, 3)
    ids = np.array([[3, 1], [2, 0]], np.int32)
    for policy in POLICIES:
        assert schedule(policy, ids, layout).instance_of_expert.tolist() == [0, 1, 2, 0]


def test_greedy_is_not_optimal_where_exact_is() -> None:
    layout = layout_of([[0, 1], [0, 2], [0], [1], [1, 2], [2]], 3)
    ids = np.array([[0, 1, 3, 4, 5]], np.int32)
    greedy, exact = (schedule(policy, ids, layout) for policy in POLICIES)
    assert exact.optimal and exact.activated.max() == 2 <= greedy.activated.max()
    chain = layout_of([[0, 1], [0, 1], [1, 2], [1], [0]], 3)
    ids = np.array([[0, 1, 2, 3, 4]], np.int32)
    assert schedule("exact", ids, chain).activated.max() == smallest_maximum(ids, chain) == 2


def test_padding_and_empty_batches_activate_nothing() -> None:
    layout = layout_of([[0], [1]], 2)
    for ids in (np.full((3, 2), -1, np.int32), np.empty((0, 2), np.int32)):
        answer = schedule("exact", ids, layout)
        assert answer.instance_of_expert.tolist() == [-1, -1] and answer.optimal
        assert answer.activated.tolist() == [0, 0]


def test_any_integer_array_will_do_and_buffers_are_reused() -> None:
    layout = layout_of([[0, 1], [1], [0]], 2)
    scheduler = Scheduler(layout)
    ids = np.array([[0, 9], [2, 9], [1, 9]], np.int64)[:, :1]
    first = scheduler.schedule(ids)  # type: ignore[arg-type]
    assert first.instance_of_expert.tolist() == [0, 1, 0]
    read_only = np.array([[1]], np.int32)
    read_only.setflags(write=False)
    second = scheduler.schedule(read_only)
    assert second.instance_of_expert is first.instance_of_expert
    assert second.instance_of_expert.tolist() == [-1, 1, -1]


@pytest.mark.parametrize("wrong", [2, -2, 2**33])
def test_an_id_out_of_range_is_named(wrong: int) -> None:
    layout = layout_of([[0], [0]], 1)
    with pytest.raises(ValueError, match=r"of token 1 is out of range; ids run from 0 to 1"):
        schedule("aebs", np.array([[0, 1], [1, wrong]]), layout)


def test_ids_of_the_wrong_shape_or_kind_are_refused() -> None:
    layout = layout_of([[0]], 1)
    for ids in (np.zeros(3, np.int32), np.zeros((1, 1), np.float32)):
        with pytest.raises(ValueError, match=r"integers \[tokens, top_k\]"):
            schedule("aebs", ids, layout)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("holders", "message"),
    [
        ([[0], [-1]], "expert 1 has no holder"),
        ([[0, 3]], "holder 3 is not an instance; ids run from 0 to 1"),
        ([[1, 0]], "holders of expert 0 must ascend"),
        ([[1, 1]], "holders of expert 0 must ascend"),
        ([[-1, 1]], "holders of expert 0 must ascend"),
        ([[]], r"\[experts, max_replicas\]"),
    ],
)
def test_impossible_layouts_are_refused(holders: list[list[int]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LayerLayout(np.array(holders, np.int32), 2)


def test_layout_from_slots() -> None:
    layout = LayerLayout.from_slots([[2, 0], [1, 2]], 3)
    assert layout.holders.tolist() == [[0, -1], [1, -1], [0, 1]]
    assert layout.num_replicas.tolist() == [1, 1, 2] and layout.num_instances == 2
    with pytest.raises(ConfigError, match="instance 1 holds expert 3"):
        LayerLayout.from_slots([[0, 1, 2], [3]], 3)
    with pytest.raises(ConfigError, match="expert 1 has no holder"):
        LayerLayout.from_slots([[0], [2]], 3)


def test_unknown_policies_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"must be one of exact, .*; got 'eplb'"):
        Scheduler(layout_of([[0]], 1), "eplb")  # type: ignore[arg-type]
