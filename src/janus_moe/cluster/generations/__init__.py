"""Which generation of the pools serves, and what follows it: a pure state machine.

events      what it is told
actions     what it wants done
machine     `GenerationMachine`: an event in, actions out; what always holds
planned     changes that wait until all members are prepared
faults      what the loss of instances does
survivors   which instances a generation after a fault has
upkeep      how many instances are kept
changes     the change under way and the generation that it opens
state       what it remembers, and the steps that the others share
roster      instances and how far each is in its life
links       who leaves when links are broken
restarts    when lost instances may be started again
placer      `Placer`: where experts go, which others decide
settings    limits and deadlines
records     changes as they are told
status      `ScaleStatus` from the state
invariants  what always holds, for tests
"""

from janus_moe.cluster.generations.machine import GenerationMachine
from janus_moe.cluster.generations.placer import Generation, Placer
from janus_moe.cluster.generations.records import ChangeRecord, ScaleStatus
from janus_moe.cluster.generations.settings import GenerationSettings

__all__ = [
    "ChangeRecord",
    "Generation",
    "GenerationMachine",
    "GenerationSettings",
    "Placer",
    "ScaleStatus",
]
