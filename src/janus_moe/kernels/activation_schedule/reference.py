"""The policy package's scheduler behind the kernel's interface, for tensors on the CPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from janus_moe.kernels.activation_schedule.tables import (
    ReplicaTables,
    ScheduleTensors,
    check_arguments,
)
from janus_moe.policy.activation import Scheduler
from janus_moe.spec import DevicePolicy

CPU = torch.device("cpu")


class PolicyActivationSchedule:
    """`janus_moe.policy.activation.Scheduler`, compiled with numba.

    It raises ValueError for an id out of range, so `invalid` is always 0.
    """

    def __init__(self, tables: ReplicaTables, policy: DevicePolicy = "exact") -> None:
        self._scheduler = Scheduler(tables.layout, policy)
        self._slot_of = tables.slot_of
        self._first_replica = tables.first_replica

    def warm_up(self) -> None:
        """Numba compiles for all sizes at once; the first batch does it."""

    def schedule(self, expert_ids: torch.Tensor, instance_index: int) -> ScheduleTensors:
        """Contract of `ActivationSchedule`."""
        num_experts, num_instances = self._slot_of.shape
        check_arguments(expert_ids, instance_index, CPU, num_instances)
        ids = expert_ids.numpy()
        instance_of, activated, optimal = self._scheduler.schedule(ids)
        slot = self._slot_of[np.arange(num_experts), instance_of]
        here = np.where(instance_of == instance_index, slot, -1)
        replica = np.where(instance_of >= 0, self._first_replica[instance_of] + slot, -1)
        return ScheduleTensors(
            torch.from_numpy(instance_of),
            torch.from_numpy(activated),
            torch.tensor([optimal], dtype=torch.int32),
            torch.zeros(1, dtype=torch.int32),
            _by_id(here, ids),
            _by_id(replica, ids),
        )


def _by_id(of_expert: NDArray[np.integer], ids: NDArray[np.int32]) -> torch.Tensor:
    table = np.append(of_expert, -1).astype(np.int32)  # [-1] is padding's
    return torch.from_numpy(table[ids])
