"""What the generation machine remembers, and the small steps that its parts share.

Every step changes the state and appends the actions that carry it out. The module does not know
which change takes which step when.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Literal

from janus_moe.cluster.generations.actions import (
    AcceptRequests,
    Action,
    AllowRebalancing,
    CancelTimer,
    CommitAtMembers,
    DropAtMembers,
    FenceInstance,
    OpenAtMembers,
    ReadmitRequests,
    RefuseRequests,
    ReportChange,
    ServeGeneration,
    SetTimer,
    StartInstance,
    StopInstance,
    StopRebalancing,
)
from janus_moe.cluster.generations.changes import NextGeneration, PlannedChange, Recovery
from janus_moe.cluster.generations.links import Link
from janus_moe.cluster.generations.placer import Generation, Placer
from janus_moe.cluster.generations.records import ChangeOutcome, ChangeRecord
from janus_moe.cluster.generations.restarts import RestartBudget
from janus_moe.cluster.generations.roster import Roster
from janus_moe.cluster.generations.settings import GenerationSettings
from janus_moe.policy.placement.adaptation import NoPlacement, Purpose
from janus_moe.spec import InstanceId, Membership, Pool

POOLS: tuple[Pool, Pool] = ("attention", "expert")
HISTORY = 32
"""Changes that are remembered."""


def names(instances: Sequence[InstanceId]) -> str:
    """Instances in a sentence."""
    return ", ".join(map(str, instances))


class MachineState:
    """Everything the machine knows.

    serving: the latest generation for which commit was sent.
    last_number: largest number ever given to a generation or an epoch.
    target: sizes that the service has or goes back to.
    change: what is under way; None means nothing.
    next: the generation that is being opened or committed; None means none.
    rebalancing: whether rebalances are allowed; `stopping` may finish the one under way, `dropping`
        may not.
    broken_links: with their reasons, until the timer `links` judges them.
    retired: numbers of committed generations that members may still hold something of.
    readmissions: attention instances that left, whose requests are not readmitted yet.
    restores_failed: in a row; the next one waits the longer.
    is_backing_off: whether the next restoration waits for the timer `retry`.
    restart_due_s: when the timer `restart` fires, if it is set.
    refuses: whether requests are refused.
    actions: what the event under way has asked for so far.
    """

    def __init__(
        self, serving: Generation, settings: GenerationSettings, placer: Placer, now_s: float
    ) -> None:
        self.settings = settings
        self.placer = placer
        self.serving = serving
        self.roster = Roster(serving.membership)
        self.last_number = serving.number
        self.target = serving.membership.shape
        self.now_s = now_s
        self.change: PlannedChange | Recovery | None = None
        self.next: NextGeneration | None = None
        self.rebalancing: Literal["allowed", "stopping", "dropping", "stopped"] = "allowed"
        self.budget = RestartBudget(settings.max_restarts)
        self.broken_links: dict[Link, str] = {}
        self.retired: list[int] = []
        self.readmissions: list[InstanceId] = []
        self.restores_failed = 0
        self.is_backing_off = False
        self.restart_due_s = 0.0
        self.refuses = False
        self.last_error = ""
        self.history: deque[ChangeRecord] = deque(maxlen=HISTORY)
        self.timers: set[str] = set()
        self.actions: list[Action] = []

    def target_of(self, pool: Pool) -> int:
        return self.target.attention if pool == "attention" else self.target.expert

    # --- timers ---------------------------------------------------------------------------------

    def set_timer(self, name: str, seconds: float) -> None:
        self.timers.add(name)
        self.actions.append(SetTimer(name, seconds))

    def cancel_timer(self, name: str) -> None:
        """Does nothing when it is not set."""
        if name in self.timers:
            self.timers.remove(name)
            self.actions.append(CancelTimer(name))

    # --- instances ------------------------------------------------------------------------------

    def start(self, pool: Pool) -> InstanceId:
        instance = self.roster.add(pool)
        self.actions.append(StartInstance(instance))
        self.set_timer(f"start {instance}", self.settings.start_timeout_s)
        return instance

    def stop(self, instance: InstanceId) -> None:
        """Lets an instance that is in no exchange leave by itself."""
        self.cancel_timer(f"start {instance}")
        entry = self.roster[instance]
        entry.life, entry.may_speak = "stopping", False
        self.actions.append(StopInstance(instance))
        self.set_timer(f"stop {instance}", self.settings.stop_timeout_s)

    def fence(self, instance: InstanceId) -> None:
        """Kills an instance; asks again when that is not confirmed."""
        for timer in ("start", "stop"):
            self.cancel_timer(f"{timer} {instance}")
        self._owe_readmission(instance)
        self.roster[instance].life = "fencing"
        self.actions.append(FenceInstance(instance))
        self.set_timer(f"fence {instance}", self.settings.fence_timeout_s)

    def remove(self, instance: InstanceId) -> None:
        """The process of an instance has ended."""
        for timer in ("start", "stop", "fence"):
            self.cancel_timer(f"{timer} {instance}")
        self._owe_readmission(instance)
        self.roster.remove(instance)

    def _owe_readmission(self, instance: InstanceId) -> None:
        """An attention instance that has served leaves; may be called again for the same."""
        entry = self.roster[instance]
        if instance.pool == "attention" and entry.may_speak and not entry.has_left:
            entry.has_left = True
            self.readmissions.append(instance)

    # --- generations ----------------------------------------------------------------------------

    def membership(
        self, attention: Sequence[InstanceId], expert: Sequence[InstanceId]
    ) -> Membership:
        """The next membership, with these members by rank."""
        number, host_of = self.last_number + 1, self.roster.host_of
        return Membership(
            generation=number,
            attention=tuple(attention),
            expert=tuple(expert),
            attention_hosts=tuple(map(host_of, attention)),
            expert_hosts=tuple(map(host_of, expert)),
            placement_epoch=number,
        )

    def place(
        self,
        attention: Sequence[InstanceId],
        expert: Sequence[InstanceId],
        purpose: Purpose,
    ) -> Generation | NoPlacement:
        """The next generation with these members."""
        membership = self.membership(attention, expert)
        placement = self.placer.place(membership, self.serving, purpose)
        if isinstance(placement, NoPlacement):
            return placement
        return Generation(membership, placement)

    def open(
        self, generation: Generation, *, abandon: bool, leaving: tuple[InstanceId, ...] = ()
    ) -> None:
        self.last_number = generation.number
        self.next = NextGeneration(generation, abandon, leaving, self.serving.number)
        self.actions.append(OpenAtMembers(generation.membership, generation.placement))
        self.set_timer("open", self.settings.open_timeout_s)

    def drop(self) -> None:
        """Gives up the generation that was opened, if one was."""
        if self.next is None:
            return
        self.cancel_timer("open")
        if members := self.roster.ready_among(self.next.members):
            self.actions.append(DropAtMembers(self.next.number, members))
        self.next = None

    def commit(self) -> None:
        """From here on there is no way back to the generation before."""
        new = self._the_next()
        self.cancel_timer("open")
        new.is_committing = True
        self.retired.append(new.previous)
        self.serving = new.generation
        for instance in new.members:
            self.roster[instance].may_speak = True
        self.actions.append(CommitAtMembers(new.number, new.abandon, (*new.members, *new.leaving)))
        self.set_timer("commit", self.settings.commit_timeout_s)

    def late(self) -> tuple[InstanceId, ...]:
        """Living instances that have not opened, or not committed, the next generation."""
        new = self._the_next()
        if not new.is_committing:
            return tuple(i for i in new.members if i not in new.opened)
        present = self.roster.ready_among((*new.members, *new.leaving))
        return tuple(i for i in present if i not in new.committed)

    def finish(self) -> None:
        """All have committed."""
        new = self._the_next()
        self.cancel_timer("commit")
        self.next = None
        self.forget_links()
        served = new.generation
        self.actions.append(
            ServeGeneration(served.membership, served.placement, tuple(self.retired))
        )
        self.retired.clear()
        for instance in self.roster.ready_among(new.leaving):
            self._owe_readmission(instance)
            self.stop(instance)
        if self.refuses:
            self.refuses = False
            self.actions.append(AcceptRequests())
        self.actions += [ReadmitRequests(instance) for instance in self.readmissions]
        self.readmissions.clear()

    def _the_next(self) -> NextGeneration:
        assert self.next is not None, "no generation is being opened"
        return self.next

    def forget_links(self) -> None:
        self.broken_links.clear()
        self.cancel_timer("links")

    # --- the rest of the service ----------------------------------------------------------------

    def stop_rebalancing(self, *, at_once: bool) -> None:
        """Does nothing when that was asked already."""
        wanted: Literal["stopping", "dropping"] = "dropping" if at_once else "stopping"
        if self.rebalancing == "allowed" or (self.rebalancing == "stopping" and at_once):
            self.rebalancing = wanted
            self.actions.append(StopRebalancing(at_once))

    def allow_rebalancing(self) -> None:
        if self.rebalancing != "allowed":
            self.rebalancing = "allowed"
            self.actions.append(AllowRebalancing(self.last_number))

    def refuse_requests(self, reason: str) -> None:
        self.refuses = True
        self.actions.append(RefuseRequests(reason, self.settings.retry_after_s))

    def report(self, outcome: ChangeOutcome, reason: str) -> None:
        """The change under way ends."""
        assert self.change is not None
        change, self.change = self.change, None
        self.record(change, outcome, reason)

    def record(self, change: PlannedChange | Recovery, outcome: ChangeOutcome, reason: str) -> None:
        """Tells of a change that has ended."""
        record = ChangeRecord(
            kind=change.kind,
            outcome=outcome,
            before=str(change.before),
            after=str(self.serving.membership.shape),
            generation=self.serving.number,
            reason=reason,
            started_s=change.started_s,
            seconds=self.now_s - change.started_s,
        )
        self.history.appendleft(record)
        self.actions.append(ReportChange(record))
