"""The activation scheduler on tensors: expert ids in, slots of one instance out.

tables      where replicas and slots are, the answer's type, the interface
reference   the policy package's scheduler behind that interface, for the CPU
assignment  greedy and repair as Triton device code
programs    the programs that are launched
kernel      tables in device memory, launches; imports Triton only when one is made
dispatch    which of them runs
"""

from janus_moe.kernels.activation_schedule.dispatch import activation_schedule
from janus_moe.kernels.activation_schedule.kernel import ActivationScheduleKernel
from janus_moe.kernels.activation_schedule.reference import PolicyActivationSchedule
from janus_moe.kernels.activation_schedule.tables import (
    ActivationSchedule,
    ReplicaTables,
    ScheduleTensors,
)
from janus_moe.spec import DevicePolicy

__all__ = [
    "ActivationSchedule",
    "ActivationScheduleKernel",
    "DevicePolicy",
    "PolicyActivationSchedule",
    "ReplicaTables",
    "ScheduleTensors",
    "activation_schedule",
]
