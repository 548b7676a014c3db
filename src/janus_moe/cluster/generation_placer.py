"""Where the experts of one service go when its pools change: a `Placer` of the generation machine.

The decision itself is `policy.placement.adapt_placement`; this module knows how many slots the
instances may have.
"""

from __future__ import annotations

from dataclasses import dataclass

from janus_moe.cluster.generations.placer import Generation
from janus_moe.policy.placement import Placement, adapt_placement
from janus_moe.policy.placement.adaptation import NoPlacement, Purpose
from janus_moe.spec import Membership


@dataclass(frozen=True, slots=True)
class AdaptingPlacer:
    """Keeps experts where they are as far as possible.

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
