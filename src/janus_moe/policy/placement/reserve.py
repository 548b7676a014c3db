"""Slots that expert instances need for sizes of the pool to come, and whether memory has them.

All are slots per layer. This module does not know bytes, hosts or settings; who calls it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from janus_moe.policy.placement.sizing import even_capacity


class Reserve(NamedTuple):
    """Free slots of every expert instance for the experts of those that are lost.

    slots: to reserve on each instance.
    losses: instances that may be lost at once while the others have room for all experts.
    reason: why it is less than what was asked for; "" when it is not.
    """

    slots: int
    losses: int
    reason: str


class PoolNeed(NamedTuple):
    """What a size of the expert pool needs.

    num_instances: the size.
    slots: on the instance with the most, for its experts, what it can load beside them and what is
        reserved for losses.
    losses: instances that may be lost at once.
    reason: why memory has no room for it; "" when it has.
    """

    num_instances: int
    slots: int
    losses: int
    reason: str


def reserve_for_losses(
    num_experts: int, num_instances: int, redundant_experts: int, losses: int, affordable: int
) -> Reserve:
    """What `--survive-losses` reserves: ceil(E / (n - k)) - E / n slots on each instance, less
    where slots of replicas can be given up.

    losses: instances that are to be survived, k of n.
    affordable: further slots that each instance has memory for.
    """
    survivable = min(losses, num_instances - 1)
    reason = ""
    if survivable < losses:
        reason = (
            f"{num_instances} expert instances can survive the loss of {survivable}, not of "
            f"{losses}: one has to be left"
        )
    wanted = _reserved(num_experts, num_instances, redundant_experts, survivable)
    while (slots := _reserved(num_experts, num_instances, redundant_experts, survivable)) > max(
        0, affordable
    ):
        survivable -= 1
    if slots < wanted:
        reason = (
            f"memory has room for {max(0, affordable)} of {wanted} slots per layer that each "
            f"expert instance needs to survive the loss of {min(losses, num_instances - 1)}; the "
            f"loss of {survivable} is survived"
        )
    return Reserve(slots, survivable, reason)


def pool_needs(
    num_experts: int,
    max_instances: int,
    redundant_experts: int,
    losses: int,
    spare_slots: int,
    affordable: Callable[[int], int],
) -> tuple[PoolNeed, ...]:
    """What each size of the expert pool from 1 on needs, and whether it fits.

    Slots for losses are reserved where memory allows and are no reason to refuse a size; replicas
    are given up before a size is.

    max_instances: the largest size; never more than there are experts.
    spare_slots: that each of several instances has for moving experts.
    affordable: size of the pool -> slots that memory has for each instance then.
    """
    needs = []
    for count in range(1, min(max_instances, num_experts) + 1):
        room, spare = affordable(count), spare_slots if count > 1 else 0
        needed = even_capacity(num_experts, count, 0)[0] + spare
        if needed > room:
            reason = (
                f"{count} expert instances need {needed} slots per layer each, memory has room for "
                f"{max(0, room)}"
            )
            needs.append(PoolNeed(count, needed, 0, reason))
            continue
        redundant = min(redundant_experts, (count - 1) * num_experts, (room - needed) * count)
        slots = even_capacity(num_experts, count, redundant)[0] + spare
        reserve = reserve_for_losses(num_experts, count, redundant, losses, room - slots)
        # An expert has one slot on an instance at most.
        slots = min(slots + reserve.slots, num_experts + spare)
        needs.append(PoolNeed(count, slots, reserve.losses, ""))
    return tuple(needs)


def _reserved(num_experts: int, num_instances: int, redundant_experts: int, losses: int) -> int:
    """[slots] with which the smallest of those that are left have room for every expert."""
    left = num_instances - losses
    smallest = sum(even_capacity(num_experts, num_instances, redundant_experts)[-left:])
    return max(0, -(-(num_experts - smallest) // left))
