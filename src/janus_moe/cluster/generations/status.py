"""What an operator is told about generations: a value made from the state."""

from __future__ import annotations

from janus_moe.cluster.generations import upkeep
from janus_moe.cluster.generations.changes import PlannedChange, Recovery
from janus_moe.cluster.generations.records import ScaleStatus
from janus_moe.cluster.generations.state import POOLS, MachineState, names


def scale_status(state: MachineState, now_s: float) -> ScaleStatus:
    """See `ScaleStatus`."""
    members, change = state.serving.membership, state.change
    joining = state.next.members if state.next and state.next.is_committing else ()
    return ScaleStatus(
        generation=members.generation,
        attention=members.attention,
        expert=members.expert,
        target=str(state.target),
        kind=change.kind if change else None,
        phase=change.phase if change else "serving",
        progress=progress(state),
        degraded=degraded(state, now_s),
        last_error=state.last_error,
        starting=tuple(state.roster.having("starting")),
        standby=tuple(i for pool in POOLS for i in upkeep.outside(state, pool) if i not in joining),
        restarts_left=state.budget.left(now_s),
        refuses_requests=state.refuses,
        history=tuple(state.history),
    )


def progress(state: MachineState) -> str:
    """What is waited for; "" for nothing."""
    match state.change, state.next:
        case None, _:
            return ""
        case _, new if new is not None:
            done = new.committed if new.is_committing else new.opened
            total = len(new.members) + (len(new.leaving) if new.is_committing else 0)
            verb = "committed" if new.is_committing else "opened"
            return f"{len(done)} of {total} {verb} generation {new.number}{_late(state)}"
        case Recovery(obstacle=obstacle), _:
            return f"waiting for: {obstacle}"
        case PlannedChange(phase="starting") as change, _:
            starting = [i for i in change.joining if state.roster.life(i) == "starting"]
            return f"waiting for {names(starting)} to be ready"
        case PlannedChange(phase="draining") as change, _:
            return f"waiting for the requests of {names(sorted(change.undrained, key=str))}"
    return "waiting for the rebalance under way"


def degraded(state: MachineState, now_s: float) -> str:
    """Why the pools are smaller than they should be; "" when they are not."""
    members = state.serving.membership
    alive = {pool: len(state.roster.ready_among(members.pool(pool))) for pool in POOLS}
    short = [
        f"{alive[pool]} of {state.target_of(pool)} {pool} instances"
        for pool in POOLS
        if alive[pool] < state.target_of(pool)
    ]
    if not short:
        return ""
    if state.budget.left(now_s) <= 0:
        limit = state.settings.max_restarts
        return f"{', '.join(short)}; {limit} restarts within the hour are used up (--max-restarts)"
    return f"{', '.join(short)}; replacements are started"


def _late(state: MachineState) -> str:
    late = state.late()
    return f"; waiting for {names(late)}" if late else ""
