"""Claims about reserved slots: with them any so many instances may be lost, with one less not; what
memory does not have is said."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policy.test_adaptation import ids

from janus_moe.policy.placement import (
    NoPlacement,
    adapt_placement,
    even_capacity,
    initial_placement,
    pool_needs,
    reserve_for_losses,
)

PLENTY = 10**6


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 20), st.integers(0, 7))
def test_any_so_many_may_be_lost_and_a_slot_less_would_be_too_few(
    num_experts: int, num_instances: int, redundant: int, losses: int
) -> None:
    num_instances = min(num_instances, num_experts)
    redundant = min(redundant, (num_instances - 1) * num_experts)
    reserve = reserve_for_losses(num_experts, num_instances, redundant, losses, PLENTY)
    assert reserve.losses == min(losses, num_instances - 1)
    assert bool(reserve.reason) == (losses >= num_instances)
    capacity = even_capacity(num_experts, num_instances, redundant)
    current = initial_placement(1, num_experts, num_instances, redundant)

    def survives(slots: int, left: tuple[int, ...]) -> bool:
        placed = adapt_placement(
            current,
            ids(*range(num_instances)),
            ids(*left),
            [capacity[rank] + slots for rank in left],
            None,
            "recover",
            epoch=1,
        )
        return not isinstance(placed, NoPlacement)

    lefts = list(itertools.combinations(range(num_instances), num_instances - reserve.losses))
    assert all(survives(reserve.slots, left) for left in lefts)
    if reserve.slots:
        assert not all(survives(reserve.slots - 1, left) for left in lefts)


def test_slots_are_those_of_the_formula() -> None:
    assert reserve_for_losses(60, 3, 0, 1, PLENTY).slots == 30 - 20
    assert reserve_for_losses(64, 4, 0, 1, PLENTY).slots == 22 - 16
    assert reserve_for_losses(64, 4, 0, 2, PLENTY).slots == 32 - 16
    assert reserve_for_losses(64, 4, 16, 1, PLENTY).slots == 22 - 20, "replicas can be given up"
    assert reserve_for_losses(64, 2, 64, 1, PLENTY).slots == 0
    assert reserve_for_losses(64, 1, 0, 0, 0) == (0, 0, "")


def test_what_memory_does_not_have_is_said() -> None:
    reserve = reserve_for_losses(60, 3, 0, 2, 12)
    assert (reserve.slots, reserve.losses) == (10, 1)
    assert "12 of 40 slots per layer" in reserve.reason and "loss of 1 is" in reserve.reason
    reserve = reserve_for_losses(60, 3, 0, 1, -4)
    assert (reserve.slots, reserve.losses) == (0, 0) and "room for 0 of 10" in reserve.reason
    reserve = reserve_for_losses(60, 3, 0, 5, PLENTY)
    assert (reserve.slots, reserve.losses) == (40, 2) and "one has to be left" in reserve.reason


def test_every_size_says_what_it_needs_and_whether_it_fits() -> None:
    needs = pool_needs(60, 4, 6, 1, 1, lambda count: 130 // count)
    assert [need.num_instances for need in needs] == [1, 2, 3, 4]
    # 60; 33 + 1 + 27; 22 + 1 + (30 - 22); 17 + 1 + (20 - 16)
    assert [need.slots for need in needs] == [60, 61, 31, 22]
    assert [need.losses for need in needs] == [0, 1, 1, 1]
    assert not any(need.reason for need in needs)


def test_replicas_and_reserves_are_given_up_before_a_size_is() -> None:
    tight = pool_needs(60, 3, 6, 1, 1, lambda count: 66 // count)
    assert [need.slots for need in tight] == [60, 33, 22]
    assert [need.losses for need in tight] == [0, 0, 0]
    assert not any(need.reason for need in tight)
    *_, third = pool_needs(60, 3, 6, 1, 1, lambda count: 20)
    assert third.reason == (
        "3 expert instances need 21 slots per layer each, memory has room for 20"
    )
    assert len(pool_needs(3, 8, 0, 0, 0, lambda count: 3)) == 3, "never more than experts"


@pytest.mark.parametrize("losses", [0, 1, 3])
@pytest.mark.parametrize("room", range(40))
def test_what_fits_a_size_never_needs_more_than_memory_has(losses: int, room: int) -> None:
    for need in pool_needs(16, 5, 4, losses, 1, lambda count: room // count):
        assert need.reason or need.slots <= room // need.num_instances
