"""Keeps as many instances as are wanted: starts lost ones again, stops what is too many.

The module does not know generations beyond their sizes; taking in what is ready is a planned
change.
"""

from __future__ import annotations

import math

from janus_moe.cluster.generations import planned
from janus_moe.cluster.generations.changes import Recovery
from janus_moe.cluster.generations.state import POOLS, MachineState
from janus_moe.spec import InstanceId, Pool


def start_missing(state: MachineState) -> None:
    """Starts what is missing, as far as the budget goes; a timer says when it goes further."""
    due_s = min([_start_missing(state, pool) for pool in POOLS])
    if math.isinf(due_s):
        state.cancel_timer("restart")
    elif due_s != state.restart_due_s or "restart" not in state.timers:
        state.restart_due_s = due_s
        state.set_timer("restart", due_s - state.now_s)


def stop_surplus(state: MachineState) -> None:
    """Stops the youngest of those that are in no generation and not needed to stand by."""
    for pool in POOLS:
        surplus = -_missing(state, pool)
        if surplus <= 0:
            continue
        spare = [*state.roster.having("starting", pool=pool), *outside(state, pool)]
        spare.sort(key=lambda i: i.number)
        for instance in spare[::-1][:surplus]:
            state.stop(instance)


def restore(state: MachineState) -> bool:
    """Begins to take in ready instances for lost ones; whether there were any."""
    if state.is_backing_off:
        return False
    joining: list[InstanceId] = []
    for pool in POOLS:
        short = state.target_of(pool) - len(state.serving.membership.pool(pool))
        if short > 0:
            joining += outside(state, pool)[:short]
    if joining:
        planned.begin_restore(state, joining)
    return bool(joining)


def outside(state: MachineState, pool: Pool) -> list[InstanceId]:
    """Ready instances in no generation, oldest first."""
    members = state.serving.membership.pool(pool)
    return [i for i in state.roster.having("ready", pool=pool) if i not in members]


def _missing(state: MachineState, pool: Pool) -> int:
    """Instances that are wanted and not there; negative where there are too many."""
    wanted = state.target_of(pool) + state.settings.standby(pool)
    guilty = state.change.guilty() if isinstance(state.change, Recovery) else []
    alive = state.roster.having("starting", "ready", pool=pool)
    return wanted - len([i for i in alive if i not in guilty])


def _start_missing(state: MachineState, pool: Pool) -> float:
    """When the next of the pool may be started; infinite where none is missing or allowed."""
    missing = max(_missing(state, pool), 0)
    while (due_s := state.budget.due_s(pool, missing, state.now_s)) <= state.now_s and missing:
        state.budget.start(pool, missing, state.now_s)
        state.start(pool)
        missing -= 1
    return due_s if missing else math.inf
