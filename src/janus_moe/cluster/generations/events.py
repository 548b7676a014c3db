"""What the generation machine is told: what happened to instances, and what an operator asks for.

Events say what was observed. They know neither connections nor processes; the part that carries
actions out turns messages of workers and notices of the runtime into events. An attention instance
that is told to be dead, silent or failed gets no requests from then on; no action says so.
"""

from __future__ import annotations

import msgspec

from janus_moe.policy.placement.value import Placement
from janus_moe.spec import InstanceId


class InstanceReady(msgspec.Struct, frozen=True):
    """A started instance has built itself and can open an exchange.

    instance: the one that `StartInstance` named.
    host: number of the host that it runs on.
    """

    instance: InstanceId
    host: int = 0


class InstanceDied(msgspec.Struct, frozen=True):
    """The process of an instance has certainly ended, so that it never speaks again.

    reason: a sentence that names it.
    """

    instance: InstanceId
    reason: str


class InstanceSilent(msgspec.Struct, frozen=True):
    """An instance hangs or cannot be reached; its process may still live.

    reason: a sentence that names it.
    """

    instance: InstanceId
    reason: str


class InstanceFailed(msgspec.Struct, frozen=True):
    """An instance reported an error that it cannot recover from; its process may still live.

    reason: a sentence that names it.
    """

    instance: InstanceId
    reason: str


class InstanceFenced(msgspec.Struct, frozen=True):
    """The end of an instance that `FenceInstance` named is confirmed."""

    instance: InstanceId


class LinkBroken(msgspec.Struct, frozen=True):
    """Two instances that may both be alive lost their connection to each other.

    first, second: its ends, in any order.
    generation: number of the generation in whose exchange it broke.
    reason: a sentence that names both.
    """

    first: InstanceId
    second: InstanceId
    generation: int
    reason: str


class MemberOpened(msgspec.Struct, frozen=True):
    """A member has opened the exchange of a generation and holds its experts."""

    instance: InstanceId
    generation: int


class MemberRefused(msgspec.Struct, frozen=True):
    """A member could not open or commit a generation.

    reason: a sentence, which need not name the member.
    """

    instance: InstanceId
    generation: int
    reason: str


class MemberCommitted(msgspec.Struct, frozen=True):
    """A member serves a generation; one that leaves has left the generation before it."""

    instance: InstanceId
    generation: int


class InstanceDrained(msgspec.Struct, frozen=True):
    """An attention instance that `DrainInstance` named holds no request any more."""

    instance: InstanceId


class RebalancingStopped(msgspec.Struct, frozen=True):
    """No rebalance is under way, and none begins before `AllowRebalancing`.

    last_number: the largest number that was ever given to an epoch.
    placement: the one that serves now; None means the one of the serving generation.
    """

    last_number: int
    placement: Placement | None = None


class ScaleRequested(msgspec.Struct, frozen=True):
    """An operator asks for other pool sizes.

    attention: number of attention instances.
    expert: number of expert instances.
    drain_timeout_s: how long attention instances that leave may finish their requests, seconds;
        afterwards the requests move.
    """

    attention: int
    expert: int
    drain_timeout_s: float


class ReplaceRequested(msgspec.Struct, frozen=True):
    """An operator asks for a new instance in the place of a living one.

    instance: the member that leaves.
    drain_timeout_s: as in `ScaleRequested`.
    """

    instance: InstanceId
    drain_timeout_s: float


class AbortRequested(msgspec.Struct, frozen=True):
    """An operator asks to give up the change under way."""


class TimerFired(msgspec.Struct, frozen=True):
    """The seconds of the latest `SetTimer` of this name have passed."""

    name: str


Event = (
    InstanceReady
    | InstanceDied
    | InstanceSilent
    | InstanceFailed
    | InstanceFenced
    | LinkBroken
    | MemberOpened
    | MemberRefused
    | MemberCommitted
    | InstanceDrained
    | RebalancingStopped
    | ScaleRequested
    | ReplaceRequested
    | AbortRequested
    | TimerFired
)
