"""Changes that wait for all members: grow, shrink, replace, and lost capacity again.

```
starting -> draining -> stopping rebalancing -> opening -> committing -> (completed)
    |           |                |                 |
    +-----------+----------------+-----------------+--> (failed or aborted: the old one serves on)
```

`advance` goes on as far as it can; the functions of `machine` record what happened before. What a
fault does to a change stands in `faults`.
"""

from __future__ import annotations

from collections.abc import Sequence

from janus_moe.cluster.generations.actions import CancelDrain, DrainInstance
from janus_moe.cluster.generations.changes import PlannedChange, Recovery
from janus_moe.cluster.generations.events import ReplaceRequested, ScaleRequested
from janus_moe.cluster.generations.records import ChangeOutcome
from janus_moe.cluster.generations.restarts import backoff_s
from janus_moe.cluster.generations.state import POOLS, MachineState, names
from janus_moe.errors import ConflictError, RequestError
from janus_moe.policy.placement.adaptation import NoPlacement
from janus_moe.spec import InstanceId, Pool, PoolShape


def begin_scale(state: MachineState, asked: ScaleRequested) -> None:
    """Begins the change; raises, with nothing changed, when it is invalid or at a bad time.

    While recovery waits, a request for the sizes that it wants lets it start what is missing.
    """
    for pool in POOLS:
        count = asked.attention if pool == "attention" else asked.expert
        if not 1 <= count <= state.settings.limit(pool):
            raise RequestError(
                f"{pool}_instances must be between 1 and {state.settings.limit(pool)} "
                f"(--max-{pool}-instances), got {count}",
                f"{pool}_instances",
            )
    target = PoolShape(attention=asked.attention, expert=asked.expert)
    if _is_waiting(state) and target == state.target:
        _start_whatever_the_budget(state, target)
        return
    _refuse_during_a_change(state)
    _refuse_unplaceable(state, target)
    leaving, joining = list[InstanceId](), list[InstanceId]()
    for pool in POOLS:
        surplus = _surplus(state, pool, target)
        leaving += _youngest(state, pool, surplus)
        joining += _take(state, pool, -surplus)
    state.change = PlannedChange(
        kind="scale",
        started_s=state.now_s,
        before=state.serving.membership.shape,
        target=target,
        joining=tuple(joining),
        leaving=tuple(leaving),
        drain_timeout_s=asked.drain_timeout_s,
    )
    if not joining and not leaving:
        state.target = target
        state.report("completed", "")


def begin_replace(state: MachineState, asked: ReplaceRequested) -> None:
    """Begins the change; raises, with nothing changed, when it is invalid or at a bad time."""
    leaving = asked.instance
    if leaving not in state.serving.membership.instances:
        raise RequestError(
            f"{leaving} is no member of generation {state.serving.number}; its members are "
            f"{names(state.serving.membership.instances)}",
            "instance",
        )
    _refuse_during_a_change(state)
    state.change = PlannedChange(
        kind="replace",
        started_s=state.now_s,
        before=state.serving.membership.shape,
        target=state.target,
        joining=tuple(_take(state, leaving.pool, 1)),
        leaving=(leaving,),
        drain_timeout_s=asked.drain_timeout_s,
    )


def begin_restore(state: MachineState, joining: Sequence[InstanceId]) -> None:
    """Instances that are ready come in for lost ones."""
    state.change = PlannedChange(
        kind="restore",
        started_s=state.now_s,
        before=state.serving.membership.shape,
        target=state.target,
        joining=tuple(joining),
    )


def abort(state: MachineState) -> None:
    """Gives up the change that was asked for; raises when there is none or it was committed."""
    change = state.change
    if change is None:
        raise ConflictError("there is no change under way")
    if not isinstance(change, PlannedChange) or change.kind == "restore":
        raise ConflictError(f"recovery from a fault cannot be aborted (phase {change.phase})")
    if change.phase == "committing":
        raise ConflictError(
            f"generation {state.serving.number} is committed already (phase committing); "
            "ask for the former sizes afterwards"
        )
    end(state, change, "aborted", "aborted by request")


def advance(state: MachineState, change: PlannedChange) -> bool:
    """One step, if the time for it has come; whether one was taken."""
    match change.phase:
        case "starting":
            return _drain_once_ready(state, change)
        case "draining":
            return _stop_rebalancing_once_drained(state, change)
        case "stopping rebalancing":
            return _open_once_stopped(state, change)
        case "opening" if not state.late():
            change.phase = "committing"
            state.target = change.target
            state.commit()
            return True
        case "committing" if not state.late():
            state.finish()
            state.restores_failed = 0
            state.report("completed", "")
            return True
    return False


def fail(state: MachineState, change: PlannedChange, reason: str) -> None:
    """Gives up a change that is not committed; what serves serves on."""
    state.last_error = reason
    if change.kind == "restore":
        state.restores_failed += 1
        state.is_backing_off = True
        state.set_timer("retry", backoff_s(state.restores_failed))
    end(state, change, "failed", reason)


def end(state: MachineState, change: PlannedChange, outcome: ChangeOutcome, reason: str) -> None:
    """Undoes what a change that is not committed has prepared."""
    state.drop()
    for timer in ("drain", "rebalancing"):
        state.cancel_timer(timer)
    state.actions += [CancelDrain(i) for i in state.roster.ready_among(change.drained)]
    state.report(outcome, reason)


def rebalancing_too_late(state: MachineState, change: PlannedChange) -> None:
    """A rebalance is given time to finish, then it is dropped; if it is not, the change fails."""
    seconds = state.settings.rebalancing_timeout_s
    if state.rebalancing == "dropping":
        fail(state, change, f"the rebalance under way was not dropped within {seconds:g} s")
        return
    state.stop_rebalancing(at_once=True)
    state.set_timer("rebalancing", seconds)


def _drain_once_ready(state: MachineState, change: PlannedChange) -> bool:
    if len(state.roster.ready_among(change.joining)) < len(change.joining):
        return False
    change.phase = "draining"
    if not set(state.serving.membership.attention) <= set(change.leaving):
        # Else there would be none for new requests; they move when the new ones serve.
        change.drained = tuple(i for i in change.leaving if i.pool == "attention")
    change.undrained = set(change.drained)
    state.actions += [DrainInstance(i, change.drain_timeout_s) for i in change.drained]
    if change.undrained:
        state.set_timer("drain", change.drain_timeout_s)
    return True


def _stop_rebalancing_once_drained(state: MachineState, change: PlannedChange) -> bool:
    if change.undrained:
        return False
    change.phase = "stopping rebalancing"
    state.cancel_timer("drain")
    if state.rebalancing != "stopped":
        state.stop_rebalancing(at_once=False)
        state.set_timer("rebalancing", state.settings.rebalancing_timeout_s)
    return True


def _open_once_stopped(state: MachineState, change: PlannedChange) -> bool:
    if state.rebalancing != "stopped":
        return False
    state.cancel_timer("rebalancing")
    attention, expert = (_members_after(state, change, pool) for pool in POOLS)
    generation = state.place(attention, expert, "resize")
    if isinstance(generation, NoPlacement):
        fail(state, change, generation.reason)
        return True
    change.phase = "opening"
    state.open(generation, abandon=False, leaving=change.leaving)
    return True


def _members_after(state: MachineState, change: PlannedChange, pool: Pool) -> list[InstanceId]:
    stay = [i for i in state.serving.membership.pool(pool) if i not in change.leaving]
    return stay + [i for i in change.joining if i.pool == pool]


def _refuse_during_a_change(state: MachineState) -> None:
    if state.change is None:
        return
    hint = "wait for it or abort it"
    if _is_waiting(state):
        hint = f"ask for {state.target} to start what is missing beyond --max-restarts"
    raise ConflictError(
        f"a change ({state.change.kind}) is under way (phase {state.change.phase}); {hint}"
    )


def _is_waiting(state: MachineState) -> bool:
    """Whether recovery waits for instances, which the budget may not allow for long."""
    return isinstance(state.change, Recovery) and state.change.phase == "waiting"


def _start_whatever_the_budget(state: MachineState, target: PoolShape) -> None:
    """An operator asks for the sizes that recovery wants: it may start what they need at once."""
    state.budget.forgive()
    asked = PlannedChange(
        kind="scale",
        started_s=state.now_s,
        before=state.serving.membership.shape,
        target=target,
        joining=(),
    )
    state.record(asked, "completed", "recovery starts what is missing")


def _refuse_unplaceable(state: MachineState, target: PoolShape) -> None:
    """Asks for a placement before anything is started; instances to come have numbers beyond."""
    pools = []
    for pool in POOLS:
        surplus = _surplus(state, pool, target)
        members = state.serving.membership.pool(pool)
        leaving = _youngest(state, pool, surplus)
        come = [InstanceId(pool=pool, number=2**31 + n) for n in range(-surplus)]
        pools.append([*(i for i in members if i not in leaving), *come])
    generation = state.place(pools[0], pools[1], "resize")
    if isinstance(generation, NoPlacement):
        raise ConflictError(f"{target} is impossible: {generation.reason}")


def _surplus(state: MachineState, pool: Pool, target: PoolShape) -> int:
    """Members beyond the target; negative where some are missing."""
    wanted = target.attention if pool == "attention" else target.expert
    return len(state.serving.membership.pool(pool)) - wanted


def _youngest(state: MachineState, pool: Pool, count: int) -> list[InstanceId]:
    members = sorted(state.serving.membership.pool(pool), key=lambda i: i.number, reverse=True)
    return members[: max(count, 0)]


def _take(state: MachineState, pool: Pool, count: int) -> list[InstanceId]:
    """Instances to come in: those that are ready, then those that are starting, then new ones."""
    members = state.serving.membership.pool(pool)
    ready = [i for i in state.roster.having("ready", pool=pool) if i not in members]
    chosen = [*ready, *state.roster.having("starting", pool=pool)][: max(count, 0)]
    return chosen + [state.start(pool) for _ in range(count - len(chosen))]
