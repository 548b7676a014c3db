"""Placements: validation, and the initial one for any numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_moe.errors import ConfigError
from janus_moe.policy.activation import Scheduler
from janus_moe.policy.placement import (
    Placement,
    activation_probability,
    auto_redundancy,
    initial_placement,
    validate_shape,
)


def placement(*layers: tuple[tuple[int, ...], ...], num_experts: int = 3) -> Placement:
    return Placement(epoch=0, num_experts=num_experts, slots=layers)


def test_tables_of_one_layer() -> None:
    value = placement(((2, 0), (1,)), ((0, 1), (2, 1)))
    assert (value.num_layers, value.num_instances, value.num_experts) == (2, 2, 3)
    assert value.slot_table(0, 0).tolist() == [1, -1, 0]
    assert value.slot_table(0, 1).tolist() == [-1, 0, -1]
    assert value.slot_table(1, 1).dtype == np.int32
    assert value.replicas(1).tolist() == [1, 2, 1]
    assert value.layer_layout(1).holders.tolist() == [[0, -1], [0, 1], [1, -1]]


def test_equal_placements_are_equal_and_hashable() -> None:
    one, other = (initial_placement(2, 8, 3, 4) for _ in range(2))
    assert one == other and hash(one) == hash(other)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "at least one layer"),
        ([((0, 1, 2), (0,)), ((0, 1, 2),)], "layer 1 is placed on 1 expert instances"),
        ([((0, 1, 1), (2,))], "expert 1 of layer 0 has two replicas on instance 0"),
        ([((0, 1, 3), (2,))], "expert 3 of layer 0, but ids run from 0 to 2"),
        ([((0,), (2,))], "1 of 3 experts of layer 0 have no slot, the first is expert 1"),
        ([((0, 1, 2), ())], "instance 1 holds no expert in any layer; use at most 1"),
    ],
)
def test_invalid_placements_are_refused(
    layers: list[tuple[tuple[int, ...], ...]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        placement(*layers)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_initial_placement_of_any_numbers(data: st.DataObject) -> None:
    experts = data.draw(st.integers(1, 30))
    instances = data.draw(st.integers(1, experts))
    redundant = data.draw(st.integers(0, (instances - 1) * experts))
    load = data.draw(
        st.none() | st.lists(st.floats(0, 1), min_size=2 * experts, max_size=2 * experts)
    )
    weights = None if load is None else np.reshape(load, (2, experts))
    value = initial_placement(2, experts, instances, redundant, weights, epoch=3)
    assert value.epoch == 3 and value.num_layers == 2 and value.num_instances == instances
    for layer in range(2):
        sizes = [len(held) for held in value.slots[layer]]
        assert sum(sizes) == experts + redundant and max(sizes) - min(sizes) <= 1
        replicas = value.replicas(layer)
        assert replicas.max() - replicas.min() <= 1, "nobody a third before all have a second"
        if weights is not None and replicas.max() > replicas.min():
            most = replicas == replicas.max()
            assert weights[layer][most].min() >= weights[layer][~most].max()


@pytest.mark.parametrize(
    ("experts", "instances", "redundant"), [(16, 4, 4), (256, 16, 32), (160, 8, 40), (60, 7, 8)]
)
def test_replicas_connect_all_instances(experts: int, instances: int, redundant: int) -> None:
    load = np.random.default_rng(0).random((1, experts))
    for weights in (None, load):
        holders = (
            initial_placement(1, experts, instances, redundant, weights).layer_layout(0).holders
        )
        reached, frontier = {0}, [0]
        for instance in frontier:
            here = holders[(holders == instance).any(axis=1)]
            fresh = set(here[here >= 0].tolist()) - reached
            reached |= fresh
            frontier.extend(sorted(fresh))
        assert reached == set(range(instances))


def test_a_quarter_more_slots_lets_the_scheduler_reach_an_even_split() -> None:
    rng = np.random.default_rng(0)
    batches = [rng.random((64, 256)).argsort(axis=1)[:, :8].astype(np.int32) for _ in range(30)]

    def excess(redundant: int) -> float:
        scheduler = Scheduler(initial_placement(1, 256, 16, redundant).layer_layout(0))
        answers = [scheduler.schedule(ids) for ids in batches]
        even = [-(-a.activated.sum() // 16) for a in answers]
        return float(np.mean([a.activated.max() for a in answers]) / np.mean(even))

    assert excess(64) < 1.01 < excess(0)


def test_shapes_that_cannot_be_filled_name_the_largest_possible() -> None:
    validate_shape(32, 32, 31 * 32)
    with pytest.raises(ConfigError, match=r"40 but the model has only 32 .* use at most 32"):
        validate_shape(32, 40, 0)
    with pytest.raises(ConfigError, match="--redundant-experts 33 must be from 0 to 32"):
        validate_shape(32, 2, 33)
    with pytest.raises(ConfigError, match="--redundant-experts 1 must be from 0 to 0"):
        validate_shape(32, 1, 1)
    with pytest.raises(ConfigError, match="--redundant-experts -1"):
        validate_shape(32, 2, -1)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        validate_shape(32, 0, 0)


def test_wrong_statistics_are_refused() -> None:
    with pytest.raises(ConfigError, match="load must be 2 layers x 4 experts"):
        initial_placement(2, 4, 2, 0, np.ones((1, 4)))
    with pytest.raises(ConfigError, match="numbers >= 0"):
        initial_placement(1, 2, 2, 0, [[1.0, float("nan")]])


def test_auto_redundancy_is_bounded_by_memory_a_quarter_and_the_pool() -> None:
    assert auto_redundancy(10_000, 100, 32, 4) == 8
    assert auto_redundancy(399, 100, 32, 4) == 3
    assert auto_redundancy(-5, 100, 32, 4) == 0
    assert auto_redundancy(10_000, 100, 32, 1) == 0


def test_activation_probability_saturates_with_the_batch() -> None:
    counts = np.array([[0, 10, 100]])
    assert activation_probability(counts, 100, 1)[0] == pytest.approx([0.0, 0.1, 1.0])
    assert activation_probability(counts, 100, 64)[0, 1] == pytest.approx(1 - 0.9**64)
