"""Rewriting ids: every (token, k) gets a replica of its expert, under every policy."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from janus_moe.errors import ConfigError
from janus_moe.policy.activation import ExpertPolicy, LayerLayout, Policy, Scheduler
from janus_moe.policy.activation.reference import (
    rewrite_reference,
    schedule_reference,
    split_reference,
)
from janus_moe.policy.placement import initial_placement

Ids = NDArray[np.int32]


def random_case(rng: np.random.Generator) -> tuple[Ids, LayerLayout]:
    experts, instances = int(rng.integers(1, 30)), int(rng.integers(1, 9))
    table = rng.random((experts, instances)).argsort(axis=1)[:, : min(3, instances)]
    counts = rng.integers(1, table.shape[1] + 1, experts)
    holders = np.full(table.shape, -1, np.int32)
    for expert, count in enumerate(counts):
        holders[expert, :count] = np.sort(table[expert, :count])
    ids = rng.integers(-1, experts, (int(rng.integers(0, 12)), int(rng.integers(1, 5))))
    return ids.astype(np.int32), LayerLayout(holders, instances)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_policy_vs_reference(seed: int) -> None:
    ids, layout = random_case(np.random.default_rng(seed))
    policy: ExpertPolicy
    for policy in get_args(ExpertPolicy):
        answer = Scheduler(layout, policy, seed=7).rewrite(ids)
        expected = schedule_reference(policy, ids, layout, seed=7)
        assert answer.labels.tolist() == rewrite_reference(ids, expected).tolist()
        assert answer.activated.tolist() == expected.activated.tolist()
        assert answer.optimal == expected.optimal
    split, expected_split = (
        Scheduler(layout, "token-split").rewrite(ids),
        split_reference(ids, layout),
    )
    assert split.labels.tolist() == expected_split.labels.tolist()
    assert split.activated.tolist() == expected_split.activated.tolist()
    assert split.optimal == expected_split.optimal


@pytest.mark.parametrize("policy", get_args(Policy))
def test_conservation_and_counts(policy: Policy) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids, layout = random_case(rng)
        answer = Scheduler(layout, policy).rewrite(ids)
        assert answer.labels.dtype == np.int32 and answer.labels.shape == ids.shape
        assert ((answer.labels == -1) == (ids == -1)).all()
        pairs = {
            (int(e), int(i)) for e, i in zip(ids.flat, answer.labels.flat, strict=True) if e >= 0
        }
        assert all(i in layout.holders[e] for e, i in pairs)
        held = np.bincount([i for _, i in pairs], minlength=layout.num_instances)
        assert held.tolist() == answer.activated.tolist()


@pytest.mark.parametrize("policy", get_args(Policy))
def test_batches_larger_than_a_chunk(policy: Policy) -> None:
    layout = LayerLayout(np.array([[0, 1], [1, 2], [0, 2], [0, -1]]), 3)
    ids = np.resize(np.array([0, 1, 3, -1], np.int32), (1500, 4))
    ids[-1, -1] = 2  # after all others became active
    answer = Scheduler(layout, policy).rewrite(ids)
    assert ((answer.labels == -1) == (ids == -1)).all() and answer.labels[-1, -1] in (0, 2)
    ids[-1, -1] = 4
    with pytest.raises(ValueError, match="expert id 4 of token 1499 is out of range"):
        Scheduler(layout, policy).rewrite(ids)


def test_labels_of_replicas_are_written_instead_of_instances() -> None:
    layout = LayerLayout.from_slots([[0, 1], [1, 2]], 3)
    physical = [[0, -1], [1, 2], [3, -1]]  # slots counted over all instances
    scheduler = Scheduler(layout, labels=physical)
    ids = np.array([[0, 1], [2, -1]], np.int32)
    assert scheduler.rewrite(ids).labels.tolist() == [[0, 1], [3, -1]]
    assert scheduler.rewrite(ids[:1]).labels.tolist() == [[0, 2]]
    mine = Scheduler(layout, labels=[[-1, -1], [-1, 0], [1, -1]])  # local slots of instance 1
    assert mine.rewrite(ids).labels.tolist() == [[-1, -1], [1, -1]]
    with pytest.raises(ConfigError, match=r"shape of holders, \(3, 2\); got \(3, 1\)"):
        Scheduler(layout, labels=[[0], [1], [2]])


@pytest.mark.parametrize("policy", get_args(Policy))
def test_local_slots_of_all_instances_cover_every_choice_once(policy: Policy) -> None:
    placed = initial_placement(1, 20, 3, 7)
    layout = placed.layer_layout(0)
    ids = np.random.default_rng(0).integers(-1, 20, (30, 3)).astype(np.int32)
    instances = Scheduler(layout, policy).rewrite(ids).labels
    for index in range(3):
        labels = placed.slot_labels(0, index)
        slots = Scheduler(layout, policy, labels=labels).rewrite(ids).labels
        assert ((slots >= 0) == (instances == index)).all()
        held = np.array(placed.slots[0][index])
        assert (held[slots[slots >= 0]] == ids[instances == index]).all()


def test_token_split_alternates_and_has_no_single_instance_per_expert() -> None:
    layout = LayerLayout(np.array([[0, 1]]), 2)
    scheduler = Scheduler(layout, "token-split")
    answer = scheduler.rewrite(np.zeros((2, 2), np.int32))
    assert answer.labels.tolist() == [[0, 1], [0, 1]] and answer.activated.tolist() == [1, 1]
    with pytest.raises(ConfigError, match="call rewrite, not schedule"):
        scheduler.schedule(np.zeros((2, 2), np.int32))
