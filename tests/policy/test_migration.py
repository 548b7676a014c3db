"""Claims about moving experts: every step is a valid placement that fits, and the last is the
target."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_moe.errors import ConfigError
from janus_moe.policy.placement import Placement, migration_steps


def placement(*layers: list[list[int]], num_experts: int, epoch: int = 0) -> Placement:
    slots = tuple(tuple(tuple(experts) for experts in layer) for layer in layers)
    return Placement(epoch=epoch, num_experts=num_experts, slots=slots)


def random_placement(
    num_layers: int, num_experts: int, capacity: list[int], seed: int
) -> Placement:
    """Any valid one: every expert somewhere, then random replicas in random free slots."""
    draw = random.Random(seed)
    layers = []
    for _ in range(num_layers):
        held: list[list[int]] = [[] for _ in capacity]
        for expert in draw.sample(range(num_experts), num_experts):
            roomy = [i for i, room in enumerate(capacity) if len(held[i]) < room]
            held[draw.choice(roomy)].append(expert)
        for instance, room in enumerate(capacity):
            others = [e for e in range(num_experts) if e not in held[instance]]
            count = draw.randint(0 if held[instance] else 1, room - len(held[instance]))
            held[instance] += draw.sample(others, count)
            draw.shuffle(held[instance])
        layers.append(held)
    return placement(*layers, num_experts=num_experts)


@st.composite
def migrations(draw: st.DrawFn) -> tuple[Placement, Placement, list[int], int]:
    num_experts = draw(st.integers(1, 12))
    num_instances = draw(st.integers(1, min(5, num_experts)))
    share = -(-num_experts // num_instances)
    capacity = [draw(st.integers(share, min(share + 3, num_experts))) for _ in range(num_instances)]
    num_layers = draw(st.integers(1, 3))
    old, new = (
        random_placement(num_layers, num_experts, capacity, draw(st.integers(0, 10**6)))
        for _ in range(2)
    )
    return old, new, capacity, draw(st.integers(1, 3))


@settings(max_examples=300, deadline=None)
@given(migrations())
def test_steps_fit_and_end_at_the_target(
    migration: tuple[Placement, Placement, list[int], int],
) -> None:
    current, target, capacity, spare = migration
    steps = migration_steps(current, target, spare)
    assert steps == migration_steps(current, target, spare), "equal input, equal answer"
    assert (steps[-1].slots if steps else current.slots) == target.slots
    assert [step.epoch for step in steps] == list(range(1, len(steps) + 1))
    before = current
    for step in steps:  # that every expert is hosted, `Placement` has checked
        for layer in range(current.num_layers):
            for instance, room in enumerate(capacity):
                old = set(before.slots[layer][instance])
                new = set(step.slots[layer][instance])
                assert len(new) <= room
                assert len(new - old) <= spare
                assert len(old | new) <= room + spare, "old and loading side by side"
                goal, start = target.slots[layer][instance], current.slots[layer][instance]
                assert new - old <= set(goal), "nothing is loaded in passing"
                assert set(goal) & set(start) <= new, "what stays never moves"
        before = step


def test_nothing_to_do_takes_no_step() -> None:
    same = placement([[0, 1], [2]], num_experts=3)
    assert migration_steps(same, same, 1) == ()


def test_a_swap_takes_one_step() -> None:
    current = placement([[0], [1]], num_experts=2, epoch=4)
    target = placement([[1], [0]], num_experts=2)
    (step,) = migration_steps(current, target, 1)
    assert step.slots == target.slots and step.epoch == 5


def test_a_circle_of_instances_takes_one_step() -> None:
    current = placement([[0], [1], [2], [3]], num_experts=4)
    target = placement([[1], [2], [3], [0]], num_experts=4)
    assert len(migration_steps(current, target, 1)) == 1


def test_exchanging_everything_takes_as_many_steps_as_an_instance_has_experts() -> None:
    current = placement([[0, 1, 2, 3], [4, 5, 6, 7]], num_experts=8)
    target = placement([[4, 5, 6, 7], [0, 1, 2, 3]], num_experts=8)
    assert len(migration_steps(current, target, 1)) == 4
    assert len(migration_steps(current, target, 2)) == 2
    assert len(migration_steps(current, target, 4)) == 1


def test_layers_move_side_by_side_and_epochs_can_start_later() -> None:
    current = placement([[0, 1], [2, 3]], [[0, 1], [2, 3]], num_experts=4)
    target = placement([[0, 1], [2, 3]], [[2, 3], [0, 1]], num_experts=4)
    steps = migration_steps(current, target, 1, first_epoch=9)
    assert [step.epoch for step in steps] == [9, 10]
    assert all(step.slots[0] == current.slots[0] for step in steps)


def test_impossible_moves_are_refused_with_numbers() -> None:
    current = placement([[0, 1], [2]], num_experts=3)
    with pytest.raises(ConfigError, match="got 0"):
        migration_steps(current, current, 0)
    with pytest.raises(ConfigError, match="of 3 expert instances, the running one of 2"):
        migration_steps(current, placement([[0], [1], [2]], num_experts=3), 1)
    with pytest.raises(ConfigError, match="of 2 layers, the running one of 1"):
        migration_steps(current, placement(*[[[0, 1], [2]]] * 2, num_experts=3), 1)
