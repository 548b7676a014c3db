"""One placement as an expert instance sees it: who computes what, and in which slot it lies here.

Physical slots are this instance's own business. A later epoch leaves every expert that stays in
its slot and puts new ones into free slots, so nothing is copied when epochs change and both can
serve at the same time. This module knows nothing of weights or threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from janus_moe.experts.scheduling import LayerScheduler, Schedulers, Table
from janus_moe.policy.placement import Placement


class Arrival(NamedTuple):
    """An expert to load.

    layer: MoE layer number.
    expert: logical id.
    slot: physical slot that it goes to.
    """

    layer: int
    expert: int
    slot: int


@dataclass(frozen=True, eq=False)
class Epoch:
    """A placement as one instance serves it.

    placement: who has which experts; its epoch is the number of this one.
    slots: [moe layers] tables.
    schedulers: [moe layers], for one thread at a time.
    """

    placement: Placement
    slots: tuple[Table, ...]
    schedulers: tuple[LayerScheduler, ...]

    @property
    def number(self) -> int:
        return self.placement.epoch

    def with_layer(self, layer: int, table: Table, scheduler: LayerScheduler) -> Epoch:
        """The same epoch with the experts of one MoE layer in other slots."""
        slots, schedulers = list(self.slots), list(self.schedulers)
        slots[layer], schedulers[layer] = table, scheduler
        return Epoch(self.placement, tuple(slots), tuple(schedulers))


def first_tables(placement: Placement, instance: int) -> list[Table]:
    """Every expert in the slot where the placement lists it."""
    return [placement.slot_table(layer, instance) for layer in range(placement.num_layers)]


def make_epoch(
    placement: Placement,
    slots: Sequence[Table],
    schedulers: Schedulers,
    before_layer: Callable[[], None] = lambda: None,
) -> Epoch:
    """The epoch of a placement whose experts lie in these slots.

    placement: who has which experts.
    slots: [moe layers] tables.
    schedulers: makes the schedulers.
    before_layer: called before the tables of each layer are made, which takes a while.
    """
    made: list[LayerScheduler] = []
    for layer, table in enumerate(slots):
        before_layer()
        made.append(schedulers.make(placement, layer, table))
    return Epoch(placement, tuple(slots), tuple(made))


def place_arrivals(
    contents: Sequence[Sequence[int]],
    experts: Sequence[Sequence[int]],
    in_use: Sequence[Collection[int]],
    num_experts: int,
) -> tuple[list[Table], list[Arrival]]:
    """Where everything lies in another epoch, and what has to be loaded for it.

    What lies in a slot already stays there. Arrivals go to slots that are not in use, rather to
    those where nothing lies, and beyond the last slot when there are too few.

    contents: [moe layers][slots] logical expert that lies there; -1 for none.
    experts: [moe layers] logical ids of the other epoch.
    in_use: [moe layers] slots whose contents must stay as they are.
    num_experts: of a layer.
    """
    tables, arrivals = list[Table](), list[Arrival]()
    for layer, (held, wanted) in enumerate(zip(contents, experts, strict=True)):
        table, own = np.full(num_experts, -1, np.int32), set(wanted)
        for slot, expert in enumerate(held):
            if expert in own:
                table[expert] = slot
        kept = {*table.tolist(), *in_use[layer]}
        free = [slot for slot in range(len(held)) if slot not in kept]
        empty, full = ([s for s in free if (held[s] < 0) == is_empty] for is_empty in (True, False))
        slots = itertools.chain(empty, full, itertools.count(len(held)))
        for expert in wanted:
            if table[expert] < 0:
                table[expert] = next(slots)
                arrivals.append(Arrival(layer, expert, int(table[expert])))
        tables.append(table)
    return tables, arrivals


def contents_of(table: Table, num_slots: int) -> list[int]:
    """[slots] logical expert in each slot, -1 for none."""
    contents = [-1] * num_slots
    for expert in np.flatnonzero(table >= 0).tolist():
        contents[table[expert]] = expert
    return contents
