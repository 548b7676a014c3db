"""From a placement to one for other instances, with as few experts to load as possible.

Instances that stay keep what they have. An expert is loaded where no instance that stays keeps it,
or where more replicas are wanted than are left. What is open after that, which experts an instance
gives up and where others go, is decided as the method `janus` does: expected activations even,
replicas linking many pairs of instances. This module does not know where weights are loaded from.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from janus_moe.policy.placement.homes import find_homes
from janus_moe.policy.placement.methods import as_load
from janus_moe.policy.placement.migration import LayerSlots
from janus_moe.policy.placement.search import LinkedFilling
from janus_moe.policy.placement.value import Placement
from janus_moe.spec import InstanceId

Purpose = Literal["recover", "resize"]
"""recover  only experts without a replica are loaded, because all wait for it
resize   slots are even, and replicas are loaded until there are as many as wanted
"""

Held = Sequence[frozenset[int]]
"""[instances] experts that lie there before; none on an instance that is new."""


@dataclass(frozen=True, slots=True)
class NoPlacement:
    """There is none.

    reason: says what would have to change.
    """

    reason: str


def adapt_placement(
    current: Placement,
    holders: Sequence[InstanceId],
    members: Sequence[InstanceId],
    capacity: Sequence[int],
    load: ArrayLike | None,
    purpose: Purpose,
    *,
    redundant_experts: int = 0,
    epoch: int,
) -> Placement | NoPlacement:
    """The placement for other instances; equal input gives an equal one.

    holders: [instances] of `current`, by rank.
    members: [instances] of the new one, by rank.
    capacity: [members] experts per layer that each can hold at most.
    load: [layers, experts] how likely each expert is active in a step, on any scale; None without
        statistics, all alike.
    redundant_experts: replicas per layer that are wanted beyond one of each expert.
    epoch: of the new placement.
    """
    num_experts, num_layers = current.num_experts, current.num_layers
    weights = as_load(np.ones((num_layers, num_experts)) if load is None else load)
    usable = [min(slots, num_experts) for slots in capacity]
    if not usable or sum(usable) < num_experts:
        return NoPlacement(
            f"{len(usable)} expert instances have room for {sum(usable)} of {num_experts} experts "
            f"per layer; {num_experts - sum(usable)} slots more are needed"
        )
    if len(members) > num_experts or min(usable) < 1:
        return NoPlacement(
            f"{len(members)} expert instances with {min(usable)} to {max(usable)} slots cannot all "
            f"hold one of {num_experts} experts"
        )
    rank_of = {holder: rank for rank, holder in enumerate(holders)}
    slots = []
    for layer, row in zip(current.slots, weights, strict=True):
        held = [frozenset(layer[rank_of[m]]) if m in rank_of else frozenset() for m in members]
        slots.append(adapt_layer(held, usable, row, purpose, num_experts + redundant_experts))
    if not all(any(layer[rank] for layer in slots) for rank in range(len(members))):
        # Nothing is lost that an idle newcomer could have taken.
        return adapt_placement(
            current, holders, members, capacity, load, "resize",
            redundant_experts=redundant_experts, epoch=epoch,
        )  # fmt: skip
    return Placement(epoch=epoch, num_experts=num_experts, slots=tuple(slots))


def slot_limits(
    held: Held, capacity: Sequence[int], purpose: Purpose, wanted_slots: int
) -> list[int]:
    """[instances] experts that each holds at most: as even as capacities allow, together as many
    slots as are wanted. To recover, all that there is room for.
    """
    if purpose == "recover":
        return list(capacity)
    left = min(wanted_slots, sum(capacity))
    limits = [0] * len(capacity)
    while left:  # the lowest first; among equal ones those that have more to keep
        open_ = [i for i in range(len(capacity)) if limits[i] < capacity[i]]
        lowest = min(limits[i] for i in open_)
        level = [i for i in open_ if limits[i] == lowest]
        for i in sorted(level, key=lambda i: (-len(held[i]), i))[:left]:
            limits[i] += 1
            left -= 1
    return limits


def adapt_layer(
    held: Held,
    capacity: Sequence[int],
    load: NDArray[np.float64],
    purpose: Purpose,
    wanted_slots: int,
) -> LayerSlots:
    """One layer's experts by instance, ascending.

    capacity: [instances], together one slot per expert or more.
    load: [experts].
    wanted_slots: experts and the replicas that are wanted beside.
    """
    limits = slot_limits(held, capacity, purpose, wanted_slots)
    kept, homeless = find_homes(held, limits, load)
    room = [limit - len(experts) for limit, experts in zip(limits, kept, strict=True)]
    _keep_replicas(held, kept, room, sum(room) - len(homeless), load)
    copies = np.bincount([e for experts in kept for e in experts], minlength=len(load))
    copies[homeless] = 1
    share = load / copies
    filling = _AdaptedFilling(limits, float(load.sum()), held)
    for instance, experts in enumerate(kept):
        for expert in sorted(experts):
            filling.keep(expert, float(share[expert]), instance)
    for expert in sorted(homeless, key=lambda e: (-share[e], e)):
        filling.place(expert, float(share[expert]))
    if purpose == "resize":
        filling.add_replicas(load)
        filling.even_out()
    return filling.slots()


def _keep_replicas(
    held: Held, kept: list[set[int]], room: list[int], budget: int, load: NDArray[np.float64]
) -> None:
    """Adds further replicas that lie there already: those of experts with the fewest copies first,
    among them the likeliest."""
    copies = np.bincount([e for experts in kept for e in experts], minlength=len(load))
    open_ = {(e, i) for i, experts in enumerate(held) for e in experts - kept[i]}
    open_ = {(e, i) for e, i in open_ if copies[e]}  # a homeless one gets its place later
    while budget > 0 and (fitting := [(e, i) for e, i in open_ if room[i]]):
        fewest = min(copies[e] for e, _ in fitting)
        for expert, instance in sorted(fitting, key=lambda pair: (-load[pair[0]], pair)):
            if budget > 0 and room[instance] and copies[expert] == fewest:
                kept[instance].add(expert)
                copies[expert] += 1
                room[instance] -= 1
                budget -= 1
                open_.discard((expert, instance))


class _AdaptedFilling(LinkedFilling):
    """Knows besides what lay where before."""

    def __init__(self, capacity: Sequence[int], total_load: float, held: Held) -> None:
        super().__init__(capacity, total_load)
        self._held = held

    def keep(self, expert: int, load: float, instance: int) -> None:
        self.to_come -= load
        self.free_slots -= 1
        self.put(expert, load, instance)

    def add_replicas(self, load: NDArray[np.float64]) -> None:
        """Fills all free slots: experts with the fewest copies first, among them the likeliest.

        load: [experts].
        """
        queue = [(len(self.holders(e)), -float(load[e]), e) for e in range(len(load))]
        heapq.heapify(queue)
        while self.with_room():
            copies, minus_load, expert = heapq.heappop(queue)
            if not self.free_for(expert):
                continue  # nor later: room only shrinks
            share = -minus_load / (copies + 1)
            for holder in self.holders(expert):
                self.load[holder] += share - self.experts[holder][expert]
                self.experts[holder][expert] = share
            self.place(expert, share)
            heapq.heappush(queue, (copies + 1, minus_load, expert))

    def even_out(self) -> None:
        """Swaps experts of the busiest instance and another while that helps and nothing more has
        to be loaded."""
        for _ in range(len(self.capacity) * 4):
            by_load = sorted(range(len(self.load)), key=lambda i: (self.load[i], i))
            busiest = by_load.pop()
            if not any(self._swap(busiest, other) for other in by_load):
                return

    def _swap(self, busiest: int, idler: int) -> bool:
        """Takes the swap that leaves the two most even, if one helps."""
        gap = self.load[busiest] - self.load[idler]
        swaps = [
            (abs(gap - 2 * (load - other_load)), expert, other)
            for expert, load in self.experts[busiest].items()
            for other, other_load in self.experts[idler].items()
            if 0 < load - other_load < gap * 0.999
            and self._swap_is_free(expert, busiest, other, idler)
        ]
        if swaps:
            _, expert, other = min(swaps)
            self.put(expert, self.take(expert, busiest), idler)
            self.put(other, self.take(other, idler), busiest)
        return bool(swaps)

    def _swap_is_free(self, expert: int, busiest: int, other: int, idler: int) -> bool:
        if expert in self.experts[idler] or other in self.experts[busiest]:
            return False
        loads_now = (expert not in self._held[busiest]) + (other not in self._held[idler])
        loads_then = (expert not in self._held[idler]) + (other not in self._held[busiest])
        return loads_then <= loads_now
