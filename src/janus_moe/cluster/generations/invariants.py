"""What always holds of the generation machine, for tests that look after every event.

The list stands in `machine`. What only the sequence of actions shows is the tests' business.
"""

from __future__ import annotations

from collections.abc import Iterator

from janus_moe.cluster.generations.changes import PlannedChange, Recovery
from janus_moe.cluster.generations.roster import Life
from janus_moe.cluster.generations.state import MachineState

TIMERS: dict[Life, str] = {"starting": "start", "stopping": "stop", "fencing": "fence"}
"""Life of an instance -> the timer that ends it."""


def violations(state: MachineState) -> Iterator[str]:
    """Sentences about what does not hold; none when all is well."""
    yield from _next_generation(state)
    yield from _change(state)
    yield from _timers(state)
    if len(set(state.readmissions)) < len(state.readmissions):
        yield "requests are to be readmitted twice"
    lost = [i for i in state.serving.membership.instances if state.roster.life(i) != "ready"]
    if lost and not isinstance(state.change, Recovery):
        yield f"{lost} of the serving generation are lost and no recovery is under way"
    if state.last_number < state.serving.number:
        yield "a number was given out that is not known to be"


def _next_generation(state: MachineState) -> Iterator[str]:
    new = state.next
    if new is None:
        return
    if new.number != state.last_number:
        yield f"generation {new.number} is not the latest"
    if new.generation.placement.epoch != new.number:
        yield f"the epoch of generation {new.number} is another"
    if new.is_committing != (state.serving is new.generation):
        yield f"generation {new.number} is committed and another one serves"
    if new.is_committing and not new.opened.issuperset(new.members):
        yield f"generation {new.number} is committed and not opened by all"
    if dead := [i for i in new.members if state.roster.life(i) != "ready"]:
        yield f"{dead} of generation {new.number} are not ready"
    if state.roster.waits_for_fence() and not new.is_committing and new.abandon:
        yield "a generation was opened before the fence was confirmed"
    if state.rebalancing != "stopped":
        yield f"generation {new.number} is under way and rebalances are {state.rebalancing}"


def _change(state: MachineState) -> Iterator[str]:
    phase = state.change.phase if state.change else "serving"
    is_open, is_committing = phase == "opening", phase == "committing"
    if (state.next is not None) != (is_open or is_committing):
        yield f"phase {phase} and next generation {state.next}"
    if state.next and state.next.is_committing != is_committing:
        yield f"phase {phase} and commit sent: {state.next.is_committing}"
    if state.change is None and state.rebalancing != "allowed":
        yield f"no change is under way and rebalances are {state.rebalancing}"
    if state.refuses and not isinstance(state.change, Recovery):
        yield "requests are refused and no recovery is under way"


def _timers(state: MachineState) -> Iterator[str]:
    """Nothing waits without a timer."""
    wanted = {f"{TIMERS[life]} {i}" for i, life in state.roster.lives() if life != "ready"}
    found = {name for name in state.timers if " " in name}
    if wanted != found:
        yield f"timers {found} of instances and not {wanted}"
    phase = state.change.phase if state.change else "serving"
    of_phase = {
        "opening": {"open"},
        "committing": {"commit"},
        "draining": {"drain"},
        "stopping rebalancing": (
            {"rebalancing"} if isinstance(state.change, PlannedChange) else set()
        ),
    }.get(phase, set())
    found = state.timers & {"open", "commit", "drain", "rebalancing"}
    if found != of_phase:
        yield f"timers {found} in phase {phase}"
    if isinstance(state.change, Recovery) and "recovery" not in state.timers and not state.refuses:
        yield "recovery has no deadline"
