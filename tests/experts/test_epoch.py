"""Claims about physical slots: what stays never moves, what comes goes where nothing lies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from janus_moe.errors import ConfigError
from janus_moe.experts.epoch import Arrival, first_tables, make_epoch, place_arrivals
from janus_moe.experts.scheduling import Schedulers
from janus_moe.policy.placement import Placement


def table(**slots: int) -> NDArray[np.int32]:
    """e3=1: expert 3 of six lies in slot 1."""
    result = np.full(6, -1, np.int32)
    for expert, slot in slots.items():
        result[int(expert[1:])] = slot
    return result


def test_what_stays_keeps_its_slot_and_arrivals_take_free_ones() -> None:
    current = [table(e0=0, e4=1, e2=2), table(e1=3, e5=0)]
    tables, arrivals = place_arrivals(current, [(2, 5, 0), (5, 1)], [4, 4])
    assert arrivals == [Arrival(layer=0, expert=5, slot=3)]
    assert np.array_equal(tables[0], table(e0=0, e2=2, e5=3))
    assert np.array_equal(tables[1], current[1])


def test_a_slot_in_use_is_never_taken_even_if_its_expert_leaves() -> None:
    with pytest.raises(ConfigError, match="load 2 experts but has 1 of 3 slots free"):
        place_arrivals([table(e0=0, e1=1)], [(2, 3)], [3])


def test_labels_are_the_physical_slots_of_this_instance() -> None:
    placement = Placement(epoch=2, num_experts=6, slots=(((0, 1, 2), (3, 4, 5)),))
    moved = table(e3=2, e4=0, e5=3)
    epoch = make_epoch(placement, [moved], Schedulers(1, "exact"))
    ids = torch.tensor([[0, 3], [5, -1]], dtype=torch.int32)
    assert epoch.schedulers[0].schedule(ids).slot_ids.tolist() == [[-1, 2], [3, -1]]
    assert np.array_equal(first_tables(placement, 1)[0], table(e3=0, e4=1, e5=2))
