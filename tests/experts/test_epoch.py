"""Claims about physical slots: what stays never moves, what comes goes where nothing lies."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from janus_moe.experts.epoch import Arrival, first_tables, make_epoch, place_arrivals
from janus_moe.experts.scheduling import Schedulers
from janus_moe.policy.placement import Placement


def table(**slots: int) -> NDArray[np.int32]:
    """e3=1: expert 3 of six lies in slot 1."""
    result = np.full(6, -1, np.int32)
    for expert, slot in slots.items():
        result[int(expert[1:])] = slot
    return result


def test_what_lies_there_keeps_its_slot_and_arrivals_take_free_ones() -> None:
    contents = [[0, 4, 2, -1], [5, -1, -1, 1]]
    tables, arrivals = place_arrivals(contents, [(2, 5, 0), (5, 1)], [{0, 1, 2}, {0, 3}], 6)
    assert arrivals == [Arrival(layer=0, expert=5, slot=3)]
    assert np.array_equal(tables[0], table(e0=0, e2=2, e5=3))
    assert np.array_equal(tables[1], table(e1=3, e5=0))


def test_a_slot_in_use_is_never_taken_even_if_its_expert_leaves() -> None:
    tables, arrivals = place_arrivals([[0, 1, -1]], [(2, 3)], [{0, 1}], 6)
    assert [arrival.slot for arrival in arrivals] == [2, 3], "beyond the last slot"
    assert np.array_equal(tables[0], table(e2=2, e3=3))


def test_empty_slots_are_taken_before_leftovers_and_leftovers_are_used_again() -> None:
    tables, arrivals = place_arrivals([[0, 1, 2, -1]], [(1, 3, 4)], [{0}], 6)
    assert arrivals == [Arrival(0, 3, 3), Arrival(0, 4, 2)]
    assert np.array_equal(tables[0], table(e1=1, e3=3, e4=2))


def test_labels_are_the_physical_slots_of_this_instance() -> None:
    placement = Placement(epoch=2, num_experts=6, slots=(((0, 1, 2), (3, 4, 5)),))
    moved = table(e3=2, e4=0, e5=3)
    epoch = make_epoch(placement, [moved], Schedulers(1, "exact"))
    ids = torch.tensor([[0, 3], [5, -1]], dtype=torch.int32)
    assert epoch.schedulers[0].schedule(ids).slot_ids.tolist() == [[-1, 2], [3, -1]]
    assert np.array_equal(first_tables(placement, 1)[0], table(e3=0, e4=1, e5=2))
