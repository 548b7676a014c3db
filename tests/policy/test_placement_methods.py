"""Placements by name: every slot used, no second copy, for any capacities; each method's point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_moe.errors import ConfigError
from janus_moe.policy.placement import (
    Placement,
    PlacementMethod,
    even_capacity,
    initial_placement,
    place_experts,
)
from janus_moe.policy.placement.coactivation import mass
from janus_moe.policy.placement.filling import Filling
from janus_moe.policy.placement.replication import fits, proportional_replicas

METHODS = get_args(PlacementMethod)


def statistics(seed: int, layers: int, experts: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    load = rng.zipf(1.4, (layers, experts)).clip(max=1000).astype(float)
    pairs = rng.random((layers, experts, experts))
    return load, pairs + pairs.transpose(0, 2, 1)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_numbers_and_any_uneven_slots(data: st.DataObject) -> None:
    experts = data.draw(st.integers(1, 14), label="experts")
    capacity = data.draw(st.lists(st.integers(1, 16), min_size=1, max_size=7), label="capacity")
    capacity[-1] += max(0, experts - sum(min(c, experts) for c in capacity))
    if sum(min(c, experts) for c in capacity) < experts:
        capacity[-1] = experts
    load, pairs = statistics(data.draw(st.integers(0, 99)), 2, experts)
    for method in METHODS:
        placed = place_experts(method, load, capacity, coactivation=pairs, epoch=5)
        assert placed.epoch == 5 and placed.num_layers == 2  # Placement checks the rest
        for layer in placed.slots:
            assert [len(held) for held in layer] == [min(c, experts) for c in capacity]
        assert placed == place_experts(method, load, capacity, coactivation=pairs, epoch=5)


@pytest.mark.parametrize("method", METHODS)
def test_large_pools(method: PlacementMethod) -> None:
    load, pairs = statistics(0, 1, 1024)
    capacity = [16] * 32 + [28] * 32
    placed = place_experts(method, load, capacity, coactivation=pairs)
    assert [len(held) for held in placed.slots[0]] == capacity


def test_janus_is_the_initial_placement_where_slots_are_even() -> None:
    load, _ = statistics(1, 3, 60)
    one = place_experts("janus", load, even_capacity(60, 7, 8))
    assert one == initial_placement(3, 60, 7, 8, load)


def test_proportional_replicas_follow_the_load_up_to_one_per_instance() -> None:
    load = np.array([100.0, 10.0, 10.0, 1.0])
    assert proportional_replicas(load, [2, 2, 2]).tolist() == [3, 1, 1, 1]
    assert proportional_replicas(load, [3, 3, 3]).tolist() == [3, 3, 2, 1]
    assert proportional_replicas(load, [4, 1, 1]).tolist() == [3, 1, 1, 1]
    assert proportional_replicas(np.array([5.0, 1.0, 1.0]), [1, 3]).tolist() == [2, 1, 1]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=5), st.integers(1, 8), st.data())
def test_whatever_fits_can_be_filled_in_any_order(
    capacity: list[int], experts: int, data: st.DataObject
) -> None:
    copies = np.array(
        data.draw(st.lists(st.integers(1, len(capacity)), min_size=experts, max_size=experts))
    )
    if not fits(copies, capacity):
        return
    replicas = [expert for expert, count in enumerate(copies) for _ in range(count)]
    filling = Filling(capacity)
    for expert in data.draw(st.permutations(replicas)):
        free = filling.free_for(expert)
        if free:
            filling.put(expert, 1.0, data.draw(st.sampled_from(free)))
        else:
            filling.swap_in(expert, 1.0)
    held = [expert for experts in filling.slots() for expert in experts]
    assert sorted(held) == replicas
    assert all(len(e) <= c for e, c in zip(filling.slots(), capacity, strict=True))
    assert filling.load == [float(len(experts)) for experts in filling.slots()]


def test_coactivation_keeps_apart_what_is_used_together() -> None:
    rng = np.random.default_rng(0)
    topic = rng.permutation(np.repeat(np.arange(8), 8))
    pairs = (topic[:, None] == topic[None, :]).astype(float)
    load = np.ones((1, 64))
    apart = place_experts("coactivation", load, [8] * 8, coactivation=pairs[None])
    assert mass(apart.slots[0], pairs) == 0
    assert mass(initial_placement(1, 64, 8).slots[0], pairs) > 0


def token_load(slots: Sequence[Sequence[int]], tokens: np.ndarray) -> float:
    """Of the busiest instance, when replicas share an expert's tokens equally."""
    copies = np.bincount(np.concatenate([list(held) for held in slots]), minlength=len(tokens))
    return float(max((tokens / copies)[list(held)].sum() for held in slots))


def test_eplb_balances_tokens_better_than_methods_that_do_not_try() -> None:
    tokens = np.random.default_rng(0).zipf(1.5, 64).clip(max=300).astype(float)
    placed = {m: place_experts(m, [tokens], [10] * 8) for m in METHODS if m != "coactivation"}
    best = token_load(placed["eplb"].slots[0], tokens)
    assert best < 1.05 * tokens.sum() / 8
    assert best < token_load(placed["janus"].slots[0], tokens)
    assert placed["eplb"].replicas(0).max() > placed["janus"].replicas(0).max() == 2


def test_hierarchical_eplb_keeps_groups_inside_nodes() -> None:
    load, _ = statistics(2, 2, 24)
    placed = place_experts("eplb", load, [8, 7, 8, 7], num_groups=4, num_nodes=2)
    for layer in placed.slots:
        nodes = [{e // 6 for held in layer[i : i + 2] for e in held} for i in (0, 2)]
        assert [len(groups) for groups in nodes] == [2, 2] and not nodes[0] & nodes[1]


def test_bad_input_is_named() -> None:
    ones = np.ones((1, 8))
    with pytest.raises(ConfigError, match=r"2 expert instances have 7 slots .* for 8 experts"):
        place_experts("janus", ones, [4, 3])
    with pytest.raises(ConfigError, match=r"needs a slot or more; got \[8, 0\]"):
        place_experts("janus", ones, [8, 0])
    with pytest.raises(ConfigError, match="one of janus, coactivation, eplb; got 'best'"):
        place_experts("best", ones, [8])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"load of expert 1 in layer 0 is nan"):
        place_experts("eplb", [[1.0, float("nan")]], [2])
    with pytest.raises(ConfigError, match=r"\[layers, experts\], got shape \(8,\)"):
        place_experts("eplb", ones[0], [8])
    with pytest.raises(ConfigError, match="needs co-activation statistics"):
        place_experts("coactivation", ones, [8])
    with pytest.raises(ConfigError, match=r"1 layers x 8 x 8 experts, got shape \(1, 8\)"):
        place_experts("coactivation", ones, [8], coactivation=ones)
    with pytest.raises(ConfigError, match="3 expert instances and 2 expert groups to be multiples"):
        place_experts("eplb", ones, [4, 4, 4], num_groups=2, num_nodes=2)
    with pytest.raises(ConfigError, match="node 0 has 3 slots for the 4 experts"):
        place_experts("eplb", ones, [3, 8], num_groups=2, num_nodes=2)
    with pytest.raises(ConfigError, match="8 experts do not form 3 equal groups"):
        place_experts("eplb", ones, [3, 3, 3], num_groups=3, num_nodes=3)
    assert isinstance(place_experts("janus", ones, [20, 1]), Placement)
