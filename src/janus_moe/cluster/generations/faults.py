"""What the loss of instances does: to the generation that serves, and to a change under way.

```
fencing -> stopping rebalancing -> opening -> committing -> (completed)
   ^                  |               |            |
   |               waiting <----------+            |
   +------------------+---------- another loss ----+
```

What was lost is fenced first, so that it never speaks again. Then a generation without it is
opened, with the survivors alone if that is possible: those that stand by come in right afterwards,
which costs no pause. Without a living attention instance or a possible placement, whatever gets
ready comes in, and until then recovery waits. Members that were about to leave are fenced too,
unless they are needed. A member that keeps generations from being opened is replaced.
"""

from __future__ import annotations

from collections.abc import Sequence

from janus_moe.cluster.generations import planned
from janus_moe.cluster.generations.changes import TRIES_BEFORE_BLAME, PlannedChange, Recovery
from janus_moe.cluster.generations.links import victims
from janus_moe.cluster.generations.restarts import backoff_s
from janus_moe.cluster.generations.state import MachineState, names
from janus_moe.cluster.generations.survivors import generation_without_losses, guilty_and_spared
from janus_moe.policy.placement.adaptation import NoPlacement
from janus_moe.spec import InstanceId

OVERDUE_GRACE_S = 1.0
"""What the engine gets to read words that came before a deadline, when it stood still itself."""
MAX_RETRY_S = 5.0
"""Longest pause before a generation is opened again after one was opened in vain."""


def lose(state: MachineState, instance: InstanceId, reason: str, *, is_gone: bool = False) -> None:
    """An instance that is starting or ready is lost; any other one is on its way out already.

    is_gone: its process has certainly ended; else it is killed now.
    """
    if state.roster.life(instance) not in ("starting", "ready"):
        return
    matters = _matters(state, instance)
    state.last_error = reason
    state.budget.lose(
        instance.pool, state.now_s, before_ready=state.roster.life(instance) == "starting"
    )
    if is_gone:
        state.remove(instance)
    else:
        state.fence(instance)
    change = state.change
    if matters:
        recover(state, reason)
    elif isinstance(change, PlannedChange) and instance in change.joining:
        planned.fail(state, change, reason)
    elif isinstance(change, Recovery) and state.next and instance in state.next.members:
        _try_again(state, change)


def recover(state: MachineState, reason: str) -> None:
    """Begins recovery, or begins it anew; gives up or concludes what is under way."""
    change = state.change
    state.forget_links()
    if isinstance(change, PlannedChange):
        _conclude(state, change, reason)
    state.stop_rebalancing(at_once=True)
    if isinstance(change, Recovery):
        change.losses.append(reason)
        _try_again(state, change)
        return
    state.change = Recovery(state.now_s, state.serving.membership.shape, [reason])
    state.set_timer("recovery", state.settings.recovery_timeout_s)


def advance(state: MachineState, change: Recovery) -> bool:
    """One step, if the time for it has come; whether one was taken."""
    match change.phase:
        case "opening" if not state.late():
            change.phase, change.is_overdue = "committing", False
            state.commit()
            return True
        case "committing" if not state.late():
            state.finish()
            state.cancel_timer("recovery")
            state.report("completed", "; ".join(change.losses))
            return True
        case "opening" | "committing":
            return False
    return _open_when_possible(state, change)


def refuse(state: MachineState, instance: InstanceId, reason: str) -> None:
    """A member could not open or commit the next generation."""
    new, change = state.next, state.change
    sentence = f"{instance} in generation {new.number if new else '?'}: {reason}"
    if new is None or new.is_committing:
        lose(state, instance, sentence)
    elif isinstance(change, PlannedChange):
        state.last_error = sentence
        if instance in change.joining:
            lose(state, instance, sentence)
        else:
            planned.fail(state, change, sentence)
    elif isinstance(change, Recovery):
        _opened_in_vain(state, change, [instance], sentence)


def open_too_late(state: MachineState, change: PlannedChange | Recovery) -> None:
    """The members that have not opened the next generation hold the others up."""
    late = state.late()
    sentence = _late_sentence(state, "opened", state.settings.open_timeout_s)
    if isinstance(change, Recovery):
        _opened_in_vain(state, change, late, sentence)
        return
    planned.fail(state, change, sentence)
    for instance in state.roster.ready_among(i for i in late if i in change.joining):
        lose(state, instance, sentence)


def commit_too_late(state: MachineState, change: PlannedChange | Recovery) -> None:
    """After a planned change, those that are late may wait for another: all steps are dropped then.

    When that was done already, those that are late are stuck themselves, unless it was the engine
    that stood still: what it has not read yet comes within a moment. Those that leave are not
    needed once the others have committed.
    """
    sentence = _late_sentence(state, "committed", state.settings.commit_timeout_s)
    late = state.late()
    if isinstance(change, Recovery):
        if change.is_overdue:
            for instance in late:
                lose(state, instance, sentence)
        else:
            change.is_overdue = True
            state.set_timer("commit", OVERDUE_GRACE_S)
        return
    state.last_error = sentence
    if set(late) <= set(change.leaving):
        for instance in late:
            state.fence(instance)
    else:
        recover(state, sentence)


def break_link(
    state: MachineState, ends: tuple[InstanceId, InstanceId], generation: int, reason: str
) -> None:
    """Remembers a broken link until it is clear whether a death explains it."""
    new, change = state.next, state.change
    used = {state.serving.number}
    if isinstance(change, Recovery) and change.phase != "committing":
        used.clear()  # its steps are lost in any case, and connections close for many reasons
    if new is not None and not new.is_committing:
        used.add(new.number)
    if new is not None and new.is_committing and not new.abandon:
        used.add(new.previous)
    if generation not in used or len(state.roster.ready_among(ends)) < 2:
        return
    state.broken_links.setdefault(ends, reason)
    if "links" not in state.timers:
        state.set_timer("links", state.settings.link_grace_s)


def judge_links(state: MachineState) -> None:
    """No death has explained the broken links: those that they belong to leave."""
    broken = {
        ends: reason
        for ends, reason in state.broken_links.items()
        if len(state.roster.ready_among(ends)) == 2
    }
    state.forget_links()
    for instance in victims(broken):
        reason = next(reason for ends, reason in broken.items() if instance in ends)
        lose(state, instance, f"{instance} leaves for a broken link: {reason}")


def _matters(state: MachineState, instance: InstanceId) -> bool:
    """Whether steps may wait for it."""
    if instance in state.serving.membership.instances:
        return True
    new = state.next
    if new is None or not new.is_committing or instance not in new.leaving:
        return False
    stay = [i for i in new.members if i not in new.committed]
    return bool(stay) and not new.abandon


def _conclude(state: MachineState, change: PlannedChange, reason: str) -> None:
    """A planned change ends for a fault; one that was committed is done, but for the fault."""
    if change.phase != "committing":
        planned.end(state, change, "failed", reason)
        return
    state.cancel_timer("commit")
    state.next = None
    state.report("completed", reason)


def _try_again(state: MachineState, change: Recovery) -> None:
    """What was opened is dropped; what was committed serves, as far as it does."""
    if change.phase == "committing":
        state.cancel_timer("commit")
        state.next = None
    state.drop()
    change.phase = "fencing"


def _open_when_possible(state: MachineState, change: Recovery) -> bool:
    if fenced := state.roster.waits_for_fence():
        change.phase, change.obstacle = "fencing", f"{names(fenced)} to be gone"
        return False
    if state.rebalancing != "stopped":
        change.phase, change.obstacle = "stopping rebalancing", "the rebalance to be dropped"
        return False
    change.phase = "waiting"
    if change.is_backing_off:
        return False
    if (guilty := guilty_and_spared(state, change)) is not None:
        lose(state, guilty, f"{guilty} kept {TRIES_BEFORE_BLAME} generations from being opened")
        return True
    generation = generation_without_losses(state, change)
    if isinstance(generation, NoPlacement):
        change.obstacle = generation.reason
        return False
    if strays := state.roster.speaking_outside(generation.membership.instances):
        for instance in strays:
            state.fence(instance)
        return True
    change.phase, change.obstacle = "opening", ""
    state.open(generation, abandon=True)
    return True


def _opened_in_vain(
    state: MachineState, change: Recovery, culprits: Sequence[InstanceId], reason: str
) -> None:
    """Tries again in a moment."""
    state.last_error = reason
    for instance in culprits:
        change.blame[instance] = change.blame.get(instance, 0) + 1
        if change.blame[instance] == TRIES_BEFORE_BLAME:
            state.budget.lose(instance.pool, state.now_s, before_ready=False)
    _try_again(state, change)
    change.obstacle = reason
    change.attempts += 1
    change.is_backing_off = True
    state.set_timer("retry", min(backoff_s(change.attempts), MAX_RETRY_S))


def _late_sentence(state: MachineState, done: str, seconds: float) -> str:
    new = state.next
    assert new is not None
    return f"{names(state.late())} had not {done} generation {new.number} within {seconds:g} s"
