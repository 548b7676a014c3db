"""Which implementation of the activation schedule runs: decided here and nowhere else."""

from __future__ import annotations

import torch

from janus_moe.errors import ConfigError
from janus_moe.kernels.activation_schedule.kernel import ActivationScheduleKernel
from janus_moe.kernels.activation_schedule.reference import PolicyActivationSchedule
from janus_moe.kernels.activation_schedule.tables import (
    ActivationSchedule,
    ReplicaTables,
)
from janus_moe.spec import DevicePolicy


def activation_schedule(
    tables: ReplicaTables, policy: DevicePolicy, device: torch.device | str
) -> ActivationSchedule:
    """One layer's scheduler for ids on `device`: compiled for the CPU, or the CUDA kernel."""
    kind = torch.device(device).type
    if kind == "cpu":
        return PolicyActivationSchedule(tables, policy)
    if kind == "cuda":
        return ActivationScheduleKernel(tables, policy, device)
    raise ConfigError(f"activation scheduling runs on cpu and cuda, not on {kind}")
