"""What the generation machine wants done, in the order in which it is to be done.

An action says what, not how. None of them is answered at once: what comes of it is told by events.
"""

from __future__ import annotations

import msgspec

from janus_moe.cluster.generations.records import ChangeRecord
from janus_moe.policy.placement.value import Placement
from janus_moe.spec import InstanceId, Membership


class StartInstance(msgspec.Struct, frozen=True):
    """Start an instance; answered by `InstanceReady`. Its id was never used before."""

    instance: InstanceId


class StopInstance(msgspec.Struct, frozen=True):
    """Let an instance that serves nothing leave by itself; answered by `InstanceDied`."""

    instance: InstanceId


class FenceInstance(msgspec.Struct, frozen=True):
    """Kill an instance and wait until it is gone; answered by `InstanceFenced`.

    From now on it gets no requests, and nothing that it says is believed. The action may be
    repeated for the same instance when no answer comes.
    """

    instance: InstanceId


class DrainInstance(msgspec.Struct, frozen=True):
    """Give an attention instance no new requests; answered by `InstanceDrained`.

    timeout_s: how long the change waits for it, seconds.
    """

    instance: InstanceId
    timeout_s: float


class CancelDrain(msgspec.Struct, frozen=True):
    """Give an attention instance requests again, since it stays."""

    instance: InstanceId


class StopRebalancing(msgspec.Struct, frozen=True):
    """Refuse rebalances; answered by `RebalancingStopped` once none is under way.

    at_once: drop the one under way, since it may wait for an instance that is lost; else it may be
        finished. May follow one that was not at once, and one answer is enough for both.
    """

    at_once: bool


class AllowRebalancing(msgspec.Struct, frozen=True):
    """Rebalances are welcome again; a stop that was not answered yet needs no answer.

    last_number: the next epoch has a larger number than this, and than all epochs before.
    """

    last_number: int


class OpenAtMembers(msgspec.Struct, frozen=True):
    """Tell all members to open the exchange of a generation beside the one that they serve.

    Each answers with `MemberOpened` or `MemberRefused`.

    placement: its epoch is the number of the generation.
    """

    membership: Membership
    placement: Placement


class CommitAtMembers(msgspec.Struct, frozen=True):
    """Tell members to serve a generation; each answers with `MemberCommitted`.

    abandon: drop the step under way and compute it again; else it is finished first.
    members: those of the generation, and after them those that leave the generation before it.
    """

    generation: int
    abandon: bool
    members: tuple[InstanceId, ...]


class DropAtMembers(msgspec.Struct, frozen=True):
    """Tell members to forget a generation that was opened and will not be committed."""

    generation: int
    members: tuple[InstanceId, ...]


class ServeGeneration(msgspec.Struct, frozen=True):
    """All members have committed: these are the pools now, and requests go to them.

    retired: numbers of generations that were committed before and are served no more; what members
        still hold of them is given back.
    """

    membership: Membership
    placement: Placement
    retired: tuple[int, ...]


class ReadmitRequests(msgspec.Struct, frozen=True):
    """Admit what an attention instance that is gone or leaves still had to other ones.

    Comes once for every attention instance that ever served and left; it may have had nothing.
    """

    instance: InstanceId


class RefuseRequests(msgspec.Struct, frozen=True):
    """Recovery takes too long: refuse new requests and end those under way with the reason.

    retry_after_s: what clients are told to wait, seconds.
    """

    reason: str
    retry_after_s: float


class AcceptRequests(msgspec.Struct, frozen=True):
    """The service serves again after `RefuseRequests`."""


class SetTimer(msgspec.Struct, frozen=True):
    """Answer with `TimerFired` after some time; replaces an earlier timer of the same name."""

    name: str
    seconds: float


class CancelTimer(msgspec.Struct, frozen=True):
    """The timer of this name must not fire any more."""

    name: str


class ReportChange(msgspec.Struct, frozen=True):
    """A change has ended, for metrics and the log; comes once for every change."""

    record: ChangeRecord


Action = (
    StartInstance
    | StopInstance
    | FenceInstance
    | DrainInstance
    | CancelDrain
    | StopRebalancing
    | AllowRebalancing
    | OpenAtMembers
    | CommitAtMembers
    | DropAtMembers
    | ServeGeneration
    | ReadmitRequests
    | RefuseRequests
    | AcceptRequests
    | SetTimer
    | CancelTimer
    | ReportChange
)
