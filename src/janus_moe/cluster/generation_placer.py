"""Where experts go when the pools change: members keep what they hold as far as possible.

A `Placer` of the generation machine; pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from janus_moe.cluster.generations import Generation, Unplaceable
from janus_moe.policy.placement import Placement
from janus_moe.spec import Membership


class KeepingPlacer:
    """Loads experts only where they are missing, or where instances would be uneven.

    num_experts: of every MoE layer.
    """

    def __init__(self, num_experts: int) -> None:
        self._num_experts = num_experts

    def place(
        self,
        membership: Membership,
        serving: Generation,
        purpose: Literal["recover", "resize"],
    ) -> Placement | Unplaceable:
        """See `Placer`."""
        if len(membership.expert) > self._num_experts:
            return Unplaceable(
                f"{len(membership.expert)} expert instances cannot share {self._num_experts} "
                "experts; use at most one instance for each"
            )
        before = serving.membership
        held = [before.rank(one) if one in before.expert else None for one in membership.expert]
        layers = tuple(
            self._layer([() if rank is None else layer[rank] for rank in held])
            for layer in serving.placement.slots
        )
        return Placement(
            epoch=membership.placement_epoch, num_experts=self._num_experts, slots=layers
        )

    def _layer(self, held: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
        """[expert instances] experts of each, from what each holds."""
        slots = [list(experts) for experts in held]
        copies = Counter(expert for experts in slots for expert in experts)
        limit = max(-(-self._num_experts // len(slots)), 1)
        spare: list[int] = []
        for experts in slots:
            for expert in sorted(experts, key=lambda e: -copies[e]):
                if len(experts) <= limit:
                    break
                experts.remove(expert)
                copies[expert] -= 1
                if not copies[expert]:
                    spare.append(expert)
        missing = [e for e in range(self._num_experts) if not copies[e] and e not in spare]
        for expert in (*spare, *missing):
            min(slots, key=len).append(expert)
        for experts in slots:
            while not experts or len(experts) < self._num_experts // len(slots):
                largest = max(slots, key=len)
                experts.append(largest.pop())
        return tuple(tuple(sorted(experts)) for experts in slots)
