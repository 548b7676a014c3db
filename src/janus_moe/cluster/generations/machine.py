"""Decides about generations: which one is prepared, committed or dropped, and who is killed or
started for it.

`GenerationMachine.handle` takes an event and returns the actions that it asks for. There is no
clock, socket, task or randomness here: the time is an argument, waits are timers, and where experts
go is asked of a `Placer`. Equal events at equal times give equal actions.

What always holds, and what `invariants.violations` checks as far as the state shows it:

- At most one generation is opened and not committed. Its number is larger than any before.
- One that was committed is never dropped. Commit is sent once all its members have opened it.
- No generation is opened or committed with an instance that is dead, being killed, or not ready.
- None is opened while an instance that has served is being killed or rebalances may be under way.
- Ids are never used again. No action addresses an instance that is gone.
- One change at a time, and every one that began is reported once.
- The requests of an attention instance that has served are readmitted once, after the commit of a
  generation without it.
- Nothing waits without a timer, but for a new instance when no restart is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence

from janus_moe.cluster.generations import faults, planned, upkeep
from janus_moe.cluster.generations.actions import Action
from janus_moe.cluster.generations.changes import PlannedChange, Recovery
from janus_moe.cluster.generations.events import (
    AbortRequested,
    Event,
    InstanceDied,
    InstanceDrained,
    InstanceFailed,
    InstanceFenced,
    InstanceReady,
    InstanceSilent,
    LinkBroken,
    MemberCommitted,
    MemberOpened,
    MemberRefused,
    RebalancingStopped,
    ReplaceRequested,
    ScaleRequested,
    TimerFired,
)
from janus_moe.cluster.generations.placer import Generation, Placer
from janus_moe.cluster.generations.records import ScaleStatus
from janus_moe.cluster.generations.settings import GenerationSettings
from janus_moe.cluster.generations.state import MachineState
from janus_moe.cluster.generations.status import scale_status
from janus_moe.policy.placement.value import Placement
from janus_moe.spec import InstanceId


class GenerationMachine:
    """The decisions of one service about its generations.

    serving: the generation that serves already, whose members are ready.
    settings: limits and deadlines.
    placer: decides where experts go.
    now_s: the time, on the clock of all later events.
    """

    def __init__(
        self, serving: Generation, settings: GenerationSettings, placer: Placer, now_s: float
    ) -> None:
        self.state = MachineState(serving, settings, placer, now_s)

    def begin(self) -> Sequence[Action]:
        """What is to be done before the first event: instances that stand by are started."""
        return self._go_on()

    def handle(self, event: Event, now_s: float) -> Sequence[Action]:
        """What is to be done after an event, in this order.

        Raises, with nothing changed, when an operator asks for what cannot be: `RequestError` for
        invalid values, `ConflictError`, which names the phase, for a wrong time or an impossible
        placement.
        """
        self.state.now_s = now_s
        if isinstance(event, ScaleRequested):
            planned.begin_scale(self.state, event)
        elif isinstance(event, ReplaceRequested):
            planned.begin_replace(self.state, event)
        elif isinstance(event, AbortRequested):
            planned.abort(self.state)
        elif isinstance(event, TimerFired):
            self._on_timer(event.name)
        else:
            self._note(event)
        return self._go_on()

    def status(self, now_s: float) -> ScaleStatus:
        """Who is in the pools and what is under way."""
        return scale_status(self.state, now_s)

    def _note(self, event: Event) -> None:
        """Records what happened, and what is lost by it."""
        state = self.state
        match event:
            case InstanceReady(instance, host):
                self._on_ready(instance, host)
            case InstanceDied(instance, reason):
                self._on_died(instance, reason)
            case InstanceFenced(instance):
                if state.roster.life(instance) == "fencing":
                    state.remove(instance)
            case InstanceSilent(instance, reason) | InstanceFailed(instance, reason):
                self._on_unfit(instance, reason)
            case LinkBroken(first, second, generation, reason):
                low, high = sorted((first, second), key=str)
                faults.break_link(state, (low, high), generation, reason)
            case MemberOpened(instance, generation):
                if state.next and state.next.number == generation:
                    state.next.opened.add(instance)
            case MemberCommitted(instance, generation):
                if state.next and state.next.number == generation:
                    state.next.committed.add(instance)
            case MemberRefused(instance, generation, reason):
                is_next = state.next is not None and state.next.number == generation
                if is_next and state.roster.life(instance) == "ready":
                    faults.refuse(state, instance, reason)
            case InstanceDrained(instance):
                if isinstance(state.change, PlannedChange):
                    state.change.undrained.discard(instance)
            case RebalancingStopped(last_number, placement):
                self._on_rebalancing_stopped(last_number, placement)

    def _on_ready(self, instance: InstanceId, host: int) -> None:
        state = self.state
        if state.roster.life(instance) != "starting":
            return
        entry = state.roster[instance]
        entry.life, entry.host = "ready", host
        state.cancel_timer(f"start {instance}")
        state.budget.succeed(instance.pool)

    def _on_died(self, instance: InstanceId, reason: str) -> None:
        match self.state.roster.life(instance):
            case "starting" | "ready":
                faults.lose(self.state, instance, reason, is_gone=True)
            case "stopping" | "fencing":
                self.state.remove(instance)

    def _on_unfit(self, instance: InstanceId, reason: str) -> None:
        match self.state.roster.life(instance):
            case "starting" | "ready":
                faults.lose(self.state, instance, reason)
            case "stopping":
                self.state.fence(instance)

    def _on_rebalancing_stopped(self, last_number: int, placement: Placement | None) -> None:
        state = self.state
        if state.rebalancing not in ("stopping", "dropping"):
            return
        state.rebalancing = "stopped"
        state.last_number = max(state.last_number, last_number)
        if placement is not None:
            state.serving = Generation(state.serving.membership, placement)

    def _on_timer(self, name: str) -> None:
        """One that was cancelled meanwhile does nothing."""
        state = self.state
        if name not in state.timers:
            return
        state.timers.remove(name)
        change = state.change
        kind, _, instance = name.partition(" ")
        match kind:
            case "retry":
                state.is_backing_off = False
                if isinstance(change, Recovery):
                    change.is_backing_off = False
            case "links":
                faults.judge_links(state)
            case "recovery":
                self._recovery_takes_too_long()
            case "drain" if isinstance(change, PlannedChange):
                change.undrained.clear()
            case "rebalancing" if isinstance(change, PlannedChange):
                planned.rebalancing_too_late(state, change)
            case "open" if change is not None:
                faults.open_too_late(state, change)
            case "commit" if change is not None:
                faults.commit_too_late(state, change)
            case "start" | "stop" | "fence":
                self._instance_is_late(kind, instance)

    def _instance_is_late(self, kind: str, name: str) -> None:
        state = self.state
        instance = next(
            i for i in state.roster.having("starting", "stopping", "fencing") if str(i) == name
        )
        if kind == "start":
            seconds = state.settings.start_timeout_s
            faults.lose(state, instance, f"{instance} was not ready within {seconds:g} s")
            return
        if kind == "fence":
            state.last_error = f"{instance} is killed and not confirmed to be gone"
        state.fence(instance)

    def _recovery_takes_too_long(self) -> None:
        state = self.state
        if isinstance(state.change, Recovery):
            why = state.change.obstacle or f"phase {state.change.phase}"
            state.refuse_requests(f"{state.change.losses[0]}; recovery waits: {why}")

    def _go_on(self) -> Sequence[Action]:
        """Takes all steps whose time has come."""
        state = self.state
        while self._step():
            pass
        actions, state.actions = state.actions, []
        return actions

    def _step(self) -> bool:
        state = self.state
        match state.change:
            case PlannedChange() as change:
                return planned.advance(state, change)
            case Recovery() as change:
                moved = faults.advance(state, change)
                if not moved and change.phase == "waiting":
                    upkeep.start_missing(state)
                return moved
        upkeep.stop_surplus(state)
        upkeep.start_missing(state)
        if upkeep.restore(state):
            return True
        state.allow_rebalancing()
        return False
