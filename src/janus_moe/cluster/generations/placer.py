"""Where experts go in a new generation, as the generation machine asks for it.

This module does not know how a placement is found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from janus_moe.policy.placement.adaptation import NoPlacement, Purpose
from janus_moe.policy.placement.value import Placement
from janus_moe.spec import Membership


@dataclass(frozen=True)
class Generation:
    """A membership and where experts are in it.

    placement: of the members by rank; its epoch changes with rebalances.
    """

    membership: Membership
    placement: Placement

    @property
    def number(self) -> int:
        return self.membership.generation


class Placer(Protocol):
    """Decides where experts go. A pure function: equal arguments give equal answers."""

    def place(
        self,
        membership: Membership,
        serving: Generation,
        purpose: Purpose,
    ) -> Placement | NoPlacement:
        """A placement for the members by rank, with epoch `membership.placement_epoch`.

        serving: the generation before; members that are in it hold their experts still.
        purpose: `recover` when all wait for it.
        """
        ...
