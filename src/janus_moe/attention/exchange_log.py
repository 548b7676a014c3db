"""What one step of an attention instance saw of the expert pool.

It does not know what was computed, and nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from janus_moe.messages import ExpertActivity
from janus_moe.spec import InstanceId
from janus_moe.transport import ReplyMetadata, Ticket, read_metadata


@dataclass(slots=True)
class ExchangeLog:
    """The exchanges of one step, of all its micro-batches.

    dispatch_seconds: spent in `dispatch`, over all MoE layers.
    combine_seconds: spent in `combine`, over all MoE layers.
    tickets: [exchanges] in the order of their replies.
    replies: [exchanges][expert instances] metadata of the replies.
    epoch: the placement that the step used.
    plan: exchange plan of the messages over the network; "" where there are none.
    notices: sentences for the log.
    """

    dispatch_seconds: float = 0.0
    combine_seconds: float = 0.0
    tickets: list[Ticket] = field(default_factory=list)
    replies: list[tuple[ReplyMetadata, ...]] = field(default_factory=list)
    epoch: int = 0
    plan: str = ""
    notices: list[str] = field(default_factory=list)

    def read(self) -> None:
        """Reads and checks what the pool left on a device. Before it, no token may go out."""
        self.replies = read_metadata(self.tickets, self.replies)

    @property
    def scheduler_seconds(self) -> float:
        """Time of the slowest instance's scheduler, summed over the layers."""
        return 1e-9 * sum(max(one.scheduler_ns for one in replies) for replies in self.replies)

    def activity(self, experts: Sequence[InstanceId]) -> ExpertActivity | None:
        """Activated experts per instance, summed over the exchanges; None without any.

        experts: the expert instances of the exchange by rank.
        """
        if not self.replies:
            return None
        counts = [[one.activated for one in replies] for replies in self.replies]
        return ExpertActivity(
            layers=len(counts),
            max_activated=sum(max(row) for row in counts),
            activated=dict(zip(experts, map(sum, zip(*counts, strict=True)), strict=True)),
        )
