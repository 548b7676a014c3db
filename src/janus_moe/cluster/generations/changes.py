"""The change under way and the generation that it opens, as the machine remembers them.

The module does not know what leads from one phase to the next.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from janus_moe.cluster.generations.placer import Generation
from janus_moe.cluster.generations.records import ChangeKind, ChangePhase
from janus_moe.policy.placement.adaptation import NoPlacement
from janus_moe.spec import InstanceId, PoolShape

TRIES_BEFORE_BLAME = 3
"""How often a member may keep a generation from being opened before it is to be replaced."""


@dataclass
class NextGeneration:
    """The generation that is being opened, and after that committed.

    abandon: whether steps of the one before are dropped.
    leaving: members of the one before that leave in good order.
    previous: number of the one before.
    opened, committed: who has said so.
    is_committing: whether commit was sent, after which it is the serving one.
    """

    generation: Generation
    abandon: bool
    leaving: tuple[InstanceId, ...]
    previous: int
    opened: set[InstanceId] = field(default_factory=set)
    committed: set[InstanceId] = field(default_factory=set)
    is_committing: bool = False

    @property
    def number(self) -> int:
        return self.generation.number

    @property
    def members(self) -> tuple[InstanceId, ...]:
        return self.generation.membership.instances


@dataclass
class PlannedChange:
    """A change that waits until all members are prepared; before commit it can be given up.

    before: sizes at its begin.
    target: sizes that the service is to have afterwards.
    joining: instances that come in; they need not be ready yet.
    leaving: members that go.
    drain_timeout_s: what those may take to finish their requests, seconds.
    drained: attention instances that get no new requests, since they leave.
    undrained: those of them that still hold requests.
    """

    kind: ChangeKind
    started_s: float
    before: PoolShape
    target: PoolShape
    joining: tuple[InstanceId, ...]
    leaving: tuple[InstanceId, ...] = ()
    drain_timeout_s: float = 0.0
    phase: ChangePhase = "starting"
    drained: tuple[InstanceId, ...] = ()
    undrained: set[InstanceId] = field(default_factory=set)


@dataclass
class Recovery:
    """A change after a fault: it goes on until a generation without what was lost is committed.

    before: sizes at its begin.
    losses: what went wrong, sentences.
    obstacle: why it cannot go on at the moment; "" for nothing.
    is_backing_off: whether it waits for the timer `retry`.
    is_overdue: whether the deadline of the commit has passed once.
    attempts: generations that were opened in vain.
    blame: how often each member kept a generation from being opened.
    unplaceable: pools for which no placement is possible, and why.
    """

    started_s: float
    before: PoolShape
    losses: list[str]
    phase: ChangePhase = "fencing"
    obstacle: str = ""
    is_backing_off: bool = False
    is_overdue: bool = False
    attempts: int = 0
    blame: dict[InstanceId, int] = field(default_factory=dict)
    unplaceable: dict[tuple[InstanceId, ...], NoPlacement] = field(default_factory=dict)
    kind: ChangeKind = "fault"

    def guilty(self) -> list[InstanceId]:
        """Members that are to be replaced."""
        return [i for i, times in self.blame.items() if times >= TRIES_BEFORE_BLAME]
