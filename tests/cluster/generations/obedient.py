"""A service of which everything answers at once, but for what a test keeps silent."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TypeVar

from janus_moe.cluster.generations import Generation, GenerationMachine, GenerationSettings
from janus_moe.cluster.generations import actions as do
from janus_moe.cluster.generations import events as on
from janus_moe.cluster.generations.invariants import violations
from janus_moe.cluster.generations.records import ChangeRecord, ScaleStatus
from janus_moe.policy.placement import NoPlacement, Placement
from janus_moe.policy.placement.adaptation import Purpose
from janus_moe.spec import InstanceId, Membership, PoolShape

A = TypeVar("A", bound=do.Action)
NUM_EXPERTS = 4


def attention(number: int) -> InstanceId:
    return InstanceId(pool="attention", number=number)


def expert(number: int) -> InstanceId:
    return InstanceId(pool="expert", number=number)


class Slots:
    """A placer for instances with so many slots each; remembers for what it was asked."""

    def __init__(self, each: int) -> None:
        self.each = each
        self.asked: list[tuple[Membership, Purpose]] = []

    def place(
        self, membership: Membership, serving: Generation, purpose: Purpose
    ) -> Placement | NoPlacement:
        self.asked.append((membership, purpose))
        count = len(membership.expert)
        if count * self.each < NUM_EXPERTS:
            return NoPlacement(f"{count} x {self.each} slots are too few")
        slots = tuple(tuple(range(i, NUM_EXPERTS, count)) for i in range(count))
        return Placement(epoch=membership.placement_epoch, num_experts=NUM_EXPERTS, slots=(slots,))


class Obedient:
    """The machine of a service, whose actions are answered at once.

    silent: instances that answer nothing.
    unanswered: actions that are not answered at all.
    """

    def __init__(
        self, num_attention: int, num_expert: int, *, slots: int = NUM_EXPERTS, **settings: float
    ) -> None:
        first = Membership.first(PoolShape(attention=num_attention, expert=num_expert))
        self.placer = Slots(slots)
        placement = self.placer.place(first, None, "resize")  # type: ignore[arg-type]
        assert isinstance(placement, Placement)
        limits = {"max_attention": 4, "max_expert": 4} | settings
        self.machine = GenerationMachine(
            Generation(first, placement),
            GenerationSettings(**limits),  # type: ignore[arg-type]
            self.placer,
            0.0,
        )
        self.now_s = 0.0
        self.actions: list[do.Action] = []
        self.timers: dict[str, float] = {}
        self.silent: set[InstanceId] = set()
        self.unanswered: set[type] = set()
        self.last_epoch = 0
        self._carry_out(self.machine.begin())

    @property
    def status(self) -> ScaleStatus:
        return self.machine.status(self.now_s)

    def tell(self, event: on.Event) -> Sequence[do.Action]:
        """All that is asked for until nothing is left to answer."""
        before = len(self.actions)
        self._carry_out(self.machine.handle(event, self.now_s))
        return self.actions[before:]

    def scale(
        self, num_attention: int, num_expert: int, drain_timeout_s: float = 10.0
    ) -> Sequence[do.Action]:
        return self.tell(on.ScaleRequested(num_attention, num_expert, drain_timeout_s))

    def die(self, instance: InstanceId) -> Sequence[do.Action]:
        return self.tell(on.InstanceDied(instance, f"{instance} died"))

    def hang(self, instance: InstanceId) -> Sequence[do.Action]:
        return self.tell(on.InstanceSilent(instance, f"{instance} hangs"))

    def fire(self, name: str) -> Sequence[do.Action]:
        """Lets the time of a timer pass that must be set."""
        self.now_s = max(self.now_s, self.timers.pop(name))
        return self.tell(on.TimerFired(name))

    def asked(self, kind: type[A]) -> list[A]:
        """All actions of a kind so far."""
        return [action for action in self.actions if isinstance(action, kind)]

    def reports(self) -> list[ChangeRecord]:
        """What ended so far, first one first."""
        return [action.record for action in self.asked(do.ReportChange)]

    def _carry_out(self, actions: Sequence[do.Action]) -> None:
        events: deque[on.Event] = deque()
        while True:
            assert not [*violations(self.machine.state)]
            for action in actions:
                self.actions.append(action)
                events.extend(self._answers(action))
            if not events:
                return
            actions = self.machine.handle(events.popleft(), self.now_s)

    def _answers(self, action: do.Action) -> list[on.Event]:
        if isinstance(action, do.SetTimer):
            self.timers[action.name] = self.now_s + action.seconds
        elif isinstance(action, do.CancelTimer):
            del self.timers[action.name]
        if type(action) in self.unanswered:
            return []
        if isinstance(action, do.StopRebalancing):
            return [on.RebalancingStopped(self.last_epoch)]
        answers: list[tuple[InstanceId, on.Event]] = []
        match action:
            case do.StartInstance(i):
                answers = [(i, on.InstanceReady(i))]
            case do.StopInstance(i):
                answers = [(i, on.InstanceDied(i, "stopped"))]
            case do.FenceInstance(i):
                return [on.InstanceFenced(i)]
            case do.DrainInstance(i):
                answers = [(i, on.InstanceDrained(i))]
            case do.OpenAtMembers(membership):
                number = membership.generation
                answers = [(i, on.MemberOpened(i, number)) for i in membership.instances]
            case do.CommitAtMembers(number, _, members):
                answers = [(i, on.MemberCommitted(i, number)) for i in members]
        return [event for instance, event in answers if instance not in self.silent]
