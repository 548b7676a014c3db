"""What is told of changes: the one under way and those that have ended, for `GET /scale`.

This module holds values only; it does not know who decides or who shows them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from janus_moe.spec import InstanceId

ChangeKind = Literal["scale", "replace", "restore", "fault"]
"""By request other sizes, by request another instance, lost capacity again, without lost ones."""

ChangeOutcome = Literal["completed", "failed", "aborted"]

ChangePhase = Literal[
    "serving",
    "starting",
    "draining",
    "stopping rebalancing",
    "fencing",
    "waiting",
    "opening",
    "committing",
]
"""`serving`: no change is under way. `waiting`: recovery is impossible until an instance is ready,
or is tried again in a moment."""


class ChangeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A change that has ended.

    before: pool sizes before it, e.g. "1A2E".
    after: pool sizes after it.
    generation: number of the generation that serves after it.
    reason: why it failed, or what a fault lost; "" for nothing to tell.
    started_s: when it began, on the clock of the events.
    seconds: how long it took.
    """

    kind: ChangeKind
    outcome: ChangeOutcome
    before: str
    after: str
    generation: int
    reason: str
    started_s: float
    seconds: float


class ScaleStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Who is in the pools, and what is under way.

    generation: number of the latest generation that was committed.
    attention, expert: its members by rank.
    target: sizes that the pools have or go back to, e.g. "1A2E".
    kind: of the change under way; None means none is.
    phase: see `ChangePhase`.
    progress: what is waited for, a sentence; "" for nothing.
    degraded: why the pools are smaller than the target; "" when they are not.
    last_error: of the last thing that went wrong; "" for nothing so far.
    starting: started and not ready yet.
    standby: ready and in no generation.
    restarts_left: replacements that may still be started within the hour.
    refuses_requests: whether recovery took so long that requests are refused.
    history: the changes that ended last, latest first.
    """

    generation: int
    attention: tuple[InstanceId, ...]
    expert: tuple[InstanceId, ...]
    target: str
    kind: ChangeKind | None
    phase: ChangePhase
    progress: str
    degraded: str
    last_error: str
    starting: tuple[InstanceId, ...]
    standby: tuple[InstanceId, ...]
    restarts_left: int
    refuses_requests: bool
    history: tuple[ChangeRecord, ...]
