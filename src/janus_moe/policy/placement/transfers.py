"""From the placement of some instances to that of others: what each has to load, from where, and
how much it holds meanwhile. It does not know how anything is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from janus_moe.policy.placement.value import Placement
from janus_moe.spec import InstanceId


class Transfer(NamedTuple):
    """One expert that an instance loads.

    layer: MoE layer number.
    expert: logical id.
    target: instance that loads it.
    source: living instance that holds it; None means the checkpoint alone has it.
    """

    layer: int
    expert: int
    target: InstanceId
    source: InstanceId | None


def transfers(
    current: Placement,
    holders: Sequence[InstanceId],
    target: Placement,
    members: Sequence[InstanceId],
    alive: Collection[InstanceId],
) -> list[Transfer]:
    """What has to be loaded, by layer, instance and expert.

    holders: [instances] of `current`, by rank.
    members: [instances] of `target`, by rank.
    alive: instances that can be read from, also those that are about to leave; of several the one
        that is asked the least.
    """
    asked: Counter[InstanceId] = Counter()
    found = []
    for layer, (old, new) in enumerate(zip(current.slots, target.slots, strict=True)):
        before = dict(zip(holders, map(frozenset, old), strict=True))
        for member, experts in zip(members, new, strict=True):
            for expert in sorted(set(experts) - before.get(member, frozenset())):
                sources = [h for h in holders if h in alive and expert in before[h]]
                source = min(sources, key=lambda h: (asked[h], h.number), default=None)
                if source is not None:
                    asked[source] += 1
                found.append(Transfer(layer, expert, member, source))
    return found


def slots_meanwhile(
    current: Placement,
    holders: Sequence[InstanceId],
    target: Placement,
    members: Sequence[InstanceId],
) -> dict[InstanceId, int]:
    """Experts of all layers that each instance of either placement holds while one follows the
    other: what it has and what it loads."""
    slots: dict[InstanceId, set[tuple[int, int]]] = {}
    for placement, instances in ((current, holders), (target, members)):
        for layer, by_rank in enumerate(placement.slots):
            for instance, experts in zip(instances, by_rank, strict=True):
                slots.setdefault(instance, set()).update((layer, expert) for expert in experts)
    return {instance: len(held) for instance, held in slots.items()}
