"""Where the experts of one service go when its pools change.

The decision itself is `policy.placement.adapt_placement`; this module knows how many slots the
instances may have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from janus_moe.cluster.generations.placer import Generation, Placer
from janus_moe.policy.placement import Placement, adapt_placement
from janus_moe.policy.placement.adaptation import NoPlacement, Purpose
from janus_moe.spec import InstanceId, Membership


@dataclass(frozen=True, slots=True)
class AdaptingPlacer:
    """A `Placer` of the generation machine. Keeps experts where they are as far as possible.

    num_slots: experts per layer that an instance can hold at most.
    redundant_experts: replicas per layer that are wanted beyond one of each expert.
    """

    num_slots: int
    redundant_experts: int

    def place(
        self, membership: Membership, serving: Generation, purpose: Purpose
    ) -> Placement | NoPlacement:
        """See `Placer`."""
        return adapt_placement(
            serving.placement,
            serving.membership.expert,
            membership.expert,
            [self.num_slots] * len(membership.expert),
            None,
            purpose,
            redundant_experts=self.redundant_experts,
            epoch=membership.placement_epoch,
        )


def pools_to_join(
    placer: Placer, serving: Generation, starting: Sequence[InstanceId], instance: InstanceId
) -> tuple[Membership, tuple[tuple[tuple[int, ...], ...], ...]]:
    """The pools that a new instance builds itself for, and [moe layers][expert instances] experts.

    What it lacks when it becomes a member is loaded then, so this is only the best guess.

    starting: further instances that are being started.
    """
    membership = with_instances(serving.membership, (*starting, instance))
    placement = placer.place(membership, serving, "resize")
    if isinstance(placement, Placement):
        return membership, placement.slots
    # More instances than can be members, such as those that stand by: it holds what another does.
    membership, slots = with_instances(serving.membership, (instance,)), serving.placement.slots
    if instance.pool == "expert":
        slots = tuple((*layer, layer[0]) for layer in slots)
    return membership, slots


def with_instances(membership: Membership, joining: Sequence[InstanceId]) -> Membership:
    """The same pools with these instances of the first host too."""
    new = [instance for instance in dict.fromkeys(joining) if instance not in membership.instances]
    attention = tuple(instance for instance in new if instance.pool == "attention")
    expert = tuple(instance for instance in new if instance.pool == "expert")
    return msgspec.structs.replace(
        membership,
        attention=(*membership.attention, *attention),
        expert=(*membership.expert, *expert),
        attention_hosts=(*membership.attention_hosts, *(0 for _ in attention)),
        expert_hosts=(*membership.expert_hosts, *(0 for _ in expert)),
    )
