"""One placement as an expert instance sees it: who computes what, and in which slot it lies here.

Physical slots are this instance's own business. A later epoch leaves every expert that stays in
its slot and puts new ones into free slots, so nothing is copied when epochs change and both can
serve at the same time. This module knows nothing of weights or threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from janus_moe.errors import ConfigError
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

    number: of the epoch.
    slots: [moe layers] tables.
    schedulers: [moe layers], for one thread at a time.
    """

    number: int
    slots: tuple[Table, ...]
    schedulers: tuple[LayerScheduler, ...]


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
    return Epoch(placement.epoch, tuple(slots), tuple(made))


def place_arrivals(
    current: Sequence[Table], experts: Sequence[Sequence[int]], num_slots: Sequence[int]
) -> tuple[list[Table], list[Arrival]]:
    """Where everything lies in the next epoch, and what has to be loaded for it.

    current: [moe layers] tables of the latest epoch.
    experts: [moe layers] logical ids of the next one.
    num_slots: [moe layers] physical slots.

    Raises ConfigError when a layer has too few free ones.
    """
    tables, arrivals = [], []
    for layer, (old, wanted) in enumerate(zip(current, experts, strict=True)):
        table = np.full_like(old, -1)
        table[list(wanted)] = old[list(wanted)]
        new = [expert for expert in wanted if table[expert] < 0]
        free = sorted(set(range(num_slots[layer])) - set(old.tolist()))
        if len(new) > len(free):
            raise ConfigError(
                f"MoE layer {layer} is to load {len(new)} experts but has {len(free)} of "
                f"{num_slots[layer]} slots free; move fewer at once or raise "
                "--rebalance-spare-slots"
            )
        for expert, slot in zip(new, free, strict=False):
            table[expert] = slot
            arrivals.append(Arrival(layer, expert, slot))
        tables.append(table)
    return tables, arrivals
