"""Claims about placements for other instances: valid, never over capacity, and with the fewest
experts to load that any placement needs (found by trying all of them)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_moe.policy.placement import (
    NoPlacement,
    Placement,
    Purpose,
    adapt_placement,
    initial_placement,
    place_experts,
    transfers,
)
from janus_moe.policy.placement.adaptation import adapt_layer, slot_limits
from janus_moe.policy.placement.homes import find_homes
from janus_moe.policy.placement.migration import LayerSlots
from janus_moe.spec import InstanceId

Held = list[frozenset[int]]


def ids(*numbers: int) -> tuple[InstanceId, ...]:
    return tuple(InstanceId(pool="expert", number=number) for number in numbers)


def adapted(
    current: Placement,
    before: Sequence[int],
    after: Sequence[int],
    capacity: Sequence[int],
    purpose: Purpose = "resize",
    redundant: int = 0,
    load: np.ndarray | None = None,
) -> Placement:
    placed = adapt_placement(
        current, ids(*before), ids(*after), capacity, load, purpose,
        redundant_experts=redundant, epoch=7,
    )  # fmt: skip
    assert isinstance(placed, Placement) and placed.epoch == 7
    for layer in placed.slots:  # that every expert has a slot, `Placement` has checked
        assert all(len(held) <= room for held, room in zip(layer, capacity, strict=True))
    return placed


def loads(held: Sequence[frozenset[int]], slots: LayerSlots) -> int:
    return sum(len(set(new) - old) for old, new in zip(held, slots, strict=True))


def all_placements(num_experts: int, limits: Sequence[int]) -> Iterator[LayerSlots]:
    """Every way to give each instance at most so many experts, with every expert somewhere."""
    choices = [
        [c for size in range(limit + 1) for c in itertools.combinations(range(num_experts), size)]
        for limit in limits
    ]
    for slots in itertools.product(*choices):
        if len(set().union(*slots)) == num_experts:
            yield slots


@st.composite
def layers(draw: st.DrawFn) -> tuple[int, Held, list[int], np.ndarray]:
    """Experts, what each instance holds, what it can hold, loads."""
    num_experts = draw(st.integers(1, 4))
    num_instances = draw(st.integers(1, min(3, num_experts)))
    some = st.frozensets(st.integers(0, num_experts - 1), max_size=num_experts)
    held = [draw(some) for _ in range(num_instances)]
    capacity = [draw(st.integers(1, num_experts)) for _ in range(num_instances)]
    if sum(capacity) < num_experts:
        capacity = [num_experts] * num_instances
    weights = draw(st.lists(st.integers(0, 3), min_size=num_experts, max_size=num_experts))
    return num_experts, held, capacity, np.array(weights, float)


@settings(max_examples=300, deadline=None)
@given(layers())
def test_to_recover_nothing_is_loaded_that_any_placement_could_do_without(
    layer: tuple[int, Held, list[int], np.ndarray],
) -> None:
    num_experts, held, capacity, load = layer
    slots = adapt_layer(held, capacity, load, "recover", num_experts)
    assert slots in set(all_placements(num_experts, capacity))
    fewest = min(loads(held, other) for other in all_placements(num_experts, capacity))
    assert loads(held, slots) == fewest
    if fewest == 0 and all(len(h) <= c for h, c in zip(held, capacity, strict=True)):
        assert [set(new) for new in slots] == list(held), "all is kept where there is room"


@settings(max_examples=300, deadline=None)
@given(layers(), st.integers(0, 4))
def test_to_resize_all_slots_that_are_wanted_are_filled_with_the_fewest_loads(
    layer: tuple[int, Held, list[int], np.ndarray], redundant: int
) -> None:
    num_experts, held, capacity, load = layer
    slots = adapt_layer(held, capacity, load, "resize", num_experts + redundant)
    limits = slot_limits(held, capacity, "resize", num_experts + redundant)
    assert sum(limits) == min(sum(capacity), num_experts + redundant)
    assert [len(new) for new in slots] == limits
    uneven = [limit for limit, room in zip(limits, capacity, strict=True) if limit < room]
    assert not uneven or max(limits) - min(uneven) <= 1, "only a full one may have fewer"
    others = (s for s in all_placements(num_experts, limits) if [len(e) for e in s] == limits)
    assert loads(held, slots) == min(loads(held, other) for other in others)


@settings(max_examples=200, deadline=None)
@given(layers())
def test_as_many_experts_as_can_keep_a_home(
    layer: tuple[int, Held, list[int], np.ndarray],
) -> None:
    num_experts, held, limits, load = layer
    homes, homeless = find_homes(held, limits, load)
    assert all(home <= had for home, had in zip(homes, held, strict=True))
    assert all(len(home) <= limit for home, limit in zip(homes, limits, strict=True))
    kept = [expert for home in homes for expert in home]
    assert sorted([*kept, *homeless]) == list(range(num_experts)), "one home each"
    choices = [
        itertools.combinations(had, min(n, len(had))) for had, n in zip(held, limits, strict=True)
    ]
    assert len(kept) == max(len(set().union(*some)) for some in itertools.product(*choices))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_change_of_instances_of_any_sizes(data: st.DataObject) -> None:
    """Grown, shrunk, replaced, several lost at once; one change after the other."""
    num_experts = data.draw(st.integers(1, 20), label="experts")
    sizes = st.integers(1, min(6, num_experts))
    members = list(range(data.draw(sizes, label="first")))
    rng = np.random.default_rng(data.draw(st.integers(0, 99), label="seed"))
    current = initial_placement(2, num_experts, len(members))
    for step in range(3):
        kept = [m for m in members if data.draw(st.booleans(), label=f"{m} stays")]
        wanted = max(data.draw(sizes, label="next size"), 1)
        newcomers = range(100 * (step + 1), 100 * (step + 1) + max(0, wanted - len(kept)))
        after = [*kept[:wanted], *newcomers]
        share = -(-num_experts // len(after))
        capacity = [data.draw(st.integers(share, num_experts)) for _ in after]
        redundant = data.draw(st.integers(0, num_experts), label="redundant")
        purpose: Purpose = data.draw(st.sampled_from(["recover", "resize"]))
        load = rng.random((2, num_experts))
        placed = adapted(current, members, after, capacity, purpose, redundant, load)
        assert placed == adapted(current, members, after, capacity, purpose, redundant, load)
        members, current = after, placed


def test_a_lost_instance_leaves_only_its_own_experts_to_load() -> None:
    current = initial_placement(2, 60, 4)
    placed = adapted(current, [0, 1, 2, 3], [0, 2, 3], [20] * 3, "recover")
    lost = {(layer, e) for layer in (0, 1) for e in current.slots[layer][1]}
    moved = transfers(current, ids(0, 1, 2, 3), placed, ids(0, 2, 3), ids(0, 2, 3))
    assert {(t.layer, t.expert) for t in moved} == lost and len(moved) == len(lost)
    assert all(transfer.source is None for transfer in moved)


def test_living_replicas_are_used_before_anything_is_loaded() -> None:
    current = Placement(epoch=0, num_experts=4, slots=(((0, 1), (1, 2), (2, 3, 0)),))
    placed = adapted(current, [0, 1, 2], [0, 2], [4, 4], "recover")
    assert placed.slots == (((0, 1), (0, 2, 3)),)


def test_a_second_replica_makes_room() -> None:
    current = Placement(epoch=0, num_experts=4, slots=(((0, 1), (0, 2), (3,)),))
    placed = adapted(current, [0, 1, 2], [0, 1], [2, 2], "recover")
    assert placed.slots in ((((0, 1), (2, 3)),), (((1, 3), (0, 2)),))
    assert adapted(current, [0, 1, 2], [0, 1], [3, 2], "recover").slots[0][0] == (0, 1, 3)


def test_an_instance_in_the_place_of_another_loads_what_that_one_had() -> None:
    current = initial_placement(1, 12, 3)
    placed = adapted(current, [0, 1, 2], [0, 5, 2], [4] * 3, "recover")
    assert placed.slots == current.slots
    placed = adapted(current, [0, 1, 2], [2, 0, 5], [4] * 3)
    old = current.slots[0]
    assert placed.slots == ((old[2], old[0], old[1]),), "ranks follow the members"


def test_an_idle_newcomer_gets_its_share_even_when_nothing_is_lost() -> None:
    current = initial_placement(1, 12, 3)
    placed = adapted(current, [0, 1, 2], [0, 1, 2, 3], [12] * 4, "recover")
    assert [len(held) for held in placed.slots[0]] == [3] * 4


def test_there_and_back_is_balanced_as_a_fresh_placement_nearly_is() -> None:
    rng = np.random.default_rng(1)
    load = rng.beta(1, 2, (4, 64))

    def busiest(placement: Placement) -> float:
        shares = [row / placement.replicas(n) for n, row in enumerate(load)]
        return float(
            np.mean(
                [
                    max(share[list(held)].sum() for held in layer) / share.sum()
                    for layer, share in zip(placement.slots, shares, strict=True)
                ]
            )
            * placement.num_instances
        )

    for redundant in (0, 16):
        current, members = place_experts("janus", load, [64]), [0]
        for count in (4, 2, 3, 8, 5, 12):
            after = [
                *members[:count],
                *range(members[-1] + 1, members[-1] + 1 + max(0, count - len(members))),
            ]
            capacity = [-(-(64 + redundant) // count)] * count
            current = adapted(current, members, after, capacity, "resize", redundant, load)
            members = after
            fresh = place_experts("janus", load, [len(held) for held in current.slots[0]])
            assert busiest(current) < 1.05 * busiest(fresh)


@pytest.mark.parametrize(
    ("members", "capacity", "reason"),
    [
        ([0, 1], [2, 1], "have room for 3 of 6 experts per layer; 3 slots more are needed"),
        ([], [], "0 expert instances have room for 0 of 6"),
        ([0, 1], [6, 0], "with 0 to 6 slots cannot all hold one of 6 experts"),
        (range(7), [1] * 7, "7 expert instances with 1 to 1 slots cannot all hold one of 6"),
    ],
)
def test_what_is_impossible_has_a_reason(
    members: Sequence[int], capacity: list[int], reason: str
) -> None:
    current = initial_placement(1, 6, 2)
    refused = adapt_placement(current, ids(0, 1), ids(*members), capacity, None, "resize", epoch=1)
    assert isinstance(refused, NoPlacement) and reason in refused.reason
