"""What may be asked of the expert pool of a running service: where experts are, what they do.

Plain values and one protocol; `cluster` carries it out, `server` shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from janus_moe.messages import ExpertLoad
from janus_moe.policy.placement import Placement

RebalanceState = Literal["idle", "planning", "loading", "switching"]
"""idle       nothing is under way
planning   the target is being computed
loading    expert instances load what the next epoch adds
switching  all is loaded; steps under way end with the old epoch, the next ones use the new one
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RebalanceStatus:
    """The rebalance under way, or the latest one.

    target_epoch: epoch at its end.
    step: epochs so far.
    num_steps: epochs in all.
    error: why the latest one was given up, a sentence for people; the epoch before that one serves.
        None when it was not.
    """

    state: RebalanceState = "idle"
    target_epoch: int = 0
    step: int = 0
    num_steps: int = 0
    error: str | None = None


class PlacementController(Protocol):
    """Where the experts of a running service are, and the means to move them."""

    @property
    def placement(self) -> Placement:
        """What steps that begin now are served with."""
        ...

    @property
    def load(self) -> ExpertLoad | None:
        """The latest report; None before the first."""
        ...

    @property
    def status(self) -> RebalanceStatus: ...

    async def rebalance(
        self, slots: Sequence[Sequence[Sequence[int]]] | None = None
    ) -> RebalanceStatus:
        """Starts moving to `slots` ([moe layers][instances] expert ids), or to what suits the load.

        Returns once it is under way, or at once when there is nothing to move. Raises RequestError
        when the slots cannot be met, ConflictError when it cannot be done now.
        """
        ...
