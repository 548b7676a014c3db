"""Which instances a generation after a fault has: survivors first, others where they are needed.

The module does not know when the generation is opened, nor where experts go.
"""

from __future__ import annotations

from collections.abc import Sequence

from janus_moe.cluster.generations.changes import Recovery
from janus_moe.cluster.generations.placer import Generation
from janus_moe.cluster.generations.state import MachineState
from janus_moe.policy.placement.adaptation import NoPlacement
from janus_moe.spec import InstanceId


def generation_without_losses(
    state: MachineState, change: Recovery, without: InstanceId | None = None
) -> Generation | NoPlacement:
    """The survivors, if that is possible, else with what is ready besides."""
    members, ready = state.serving.membership, state.roster.having("ready")
    ready = [i for i in ready if i != without]
    attention, expert = (
        [i for i in pool if i in ready] for pool in (members.attention, members.expert)
    )
    others = [i for i in ready if i not in attention and i not in expert]
    if not attention:
        attention = [i for i in others if i.pool == "attention"][: state.target.attention]
    if not attention:
        return NoPlacement("no attention instance is alive")
    room = state.target.expert - len(expert)
    more = [i for i in others if i.pool == "expert"][: max(room, 0)]
    answer: Generation | NoPlacement = NoPlacement("no expert instance is alive")
    for chosen in (expert, expert + more):
        if chosen:
            answer = _placed(state, change, attention, chosen)
        if isinstance(answer, Generation):
            break
    return answer


def _placed(
    state: MachineState,
    change: Recovery,
    attention: Sequence[InstanceId],
    expert: Sequence[InstanceId],
) -> Generation | NoPlacement:
    """As `MachineState.place`, which is not asked twice for what is impossible."""
    key = (*attention, *expert)
    if (known := change.unplaceable.get(key)) is not None:
        return known
    answer = state.place(attention, expert, "recover")
    if isinstance(answer, NoPlacement):
        change.unplaceable[key] = answer
    return answer


def guilty_and_spared(state: MachineState, change: Recovery) -> InstanceId | None:
    """The member that keeps generations from being opened, once one without it is possible."""
    guilty = [
        i
        for i in change.guilty()
        if state.roster.life(i) == "ready"
        and isinstance(generation_without_losses(state, change, without=i), Generation)
    ]
    return max(guilty, key=lambda i: (i.pool == "expert", i.number), default=None)
