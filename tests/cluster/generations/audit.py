"""Checks decisions by the sequence of actions and events, without looking into the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from janus_moe.cluster.generations import actions as do
from janus_moe.cluster.generations import events as on
from janus_moe.cluster.generations.changes import Recovery
from janus_moe.spec import InstanceId, Membership

if TYPE_CHECKING:
    from tests.cluster.generations.simulation import Simulation


class Audit:
    """What was heard and asked for so far; raises `AssertionError` where a rule is broken."""

    def __init__(self, first: Membership) -> None:
        self.used_ids = set(first.instances)
        self.ready = set(first.instances)
        self.gone: set[InstanceId] = set()
        self.fenced: set[InstanceId] = set()
        self.serving = first
        self.opening: Membership | None = None
        self.opened: set[InstanceId] = set()
        self.committed_numbers = {0}
        self.served_attention = set(first.attention)
        self.accused: set[InstanceId] = set()
        self.leaving: set[InstanceId] = set()  # ever
        self.in_use = {*first.instances}  # of all generations since the one that serves
        self.readmitted: set[InstanceId] = set()
        self.last_number = 0
        self.asked = 0  # changes that an operator has asked for and that began
        self.told = 0  # those of them that were reported

    def hear(self, event: on.Event) -> None:
        """Before the machine is told."""
        match event:
            case on.InstanceReady(instance):
                self.ready.add(instance)
            case on.InstanceDied(instance) | on.InstanceFenced(instance):
                self.gone.add(instance)
            case on.InstanceSilent(instance) | on.InstanceFailed(instance):
                self.accused.add(instance)
            case on.MemberOpened(instance, generation):
                if self.opening and self.opening.generation == generation:
                    self.opened.add(instance)
            case on.RebalancingStopped(last_number):
                self.last_number = max(self.last_number, last_number)

    def see(self, action: do.Action, world: Simulation) -> None:
        """Before the action is carried out."""
        if instance := getattr(action, "instance", None):
            self._addressed(action, instance, world)
        match action:
            case do.FenceInstance(instance):
                self.fenced.add(instance)
                guilty = self.accused | self.leaving
                assert instance in guilty or not world.is_plain, f"innocent: {action}"
            case do.OpenAtMembers(membership):
                self._opened(membership, world)
            case do.CommitAtMembers(generation, abandon, members):
                assert self.opening and self.opening.generation == generation, action
                unfit = self.gone.union(self.fenced) & self.in_use
                assert abandon == bool(unfit) or not world.is_plain, f"{action} without {unfit}"
                self.leaving |= {*members}.difference(self.opening.instances)
                self.in_use |= {*members}
                assert self.opened.issuperset(self.opening.instances), f"not opened: {action}"
                self._alive(action, members)
                self.served_attention.update(self.opening.attention)
                self.committed_numbers.add(generation)
                self.serving, self.opening = self.opening, None
            case do.DropAtMembers(generation, members):
                assert generation not in self.committed_numbers, f"committed: {action}"
                self._alive(action, members)
                self.opening = None
            case do.ServeGeneration(membership):
                self.in_use = {*membership.instances}
            case do.ReportChange(record):
                self.told += record.kind in ("scale", "replace")
                if record.outcome != "completed":
                    self.opening = None

    def _addressed(self, action: do.Action, instance: InstanceId, world: Simulation) -> None:
        if isinstance(action, do.StartInstance):
            fault = isinstance(world.machine.state.change, Recovery)
            limited = not (world.settings.max_restarts or world.stand_by or world.is_forgiven)
            assert not (fault and limited), f"no restart is allowed: {action}"
            assert instance not in self.used_ids, f"used before: {action}"
            self.used_ids.add(instance)
        elif isinstance(action, do.ReadmitRequests):
            assert instance not in self.readmitted, f"twice: {action}"
            assert instance in self.served_attention, action
            assert instance not in self.serving.attention, f"before the commit: {action}"
            self.readmitted.add(instance)
        else:
            assert instance not in self.gone, f"gone: {action}"

    def _opened(self, membership: Membership, world: Simulation) -> None:
        assert self.opening is None, f"{self.opening} is open already"
        assert membership.generation > self.last_number, "numbers grow"
        self._alive(membership, membership.instances)
        assert self.ready.issuperset(membership.instances), f"not ready: {membership}"
        assert not world.rebalances, "a rebalance is under way"
        for instance in self.serving.instances:
            unfit = instance in self.fenced or instance in self.gone
            assert not (unfit and world.workers[instance].alive), f"{instance} is not fenced yet"
        self.last_number = membership.generation
        self.opening, self.opened = membership, set()

    def _alive(self, what: object, members: tuple[InstanceId, ...]) -> None:
        assert self.gone.isdisjoint(members), f"gone: {what}"
        assert self.fenced.isdisjoint(members), f"fenced: {what}"
