"""Where the replicas and slots of one layer are, and what a schedule on a device answers.

It does not know which implementation reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from janus_moe.policy.activation import LayerLayout


@dataclass(frozen=True, eq=False)
class ReplicaTables:
    """One layer's replicas, on the host.

    layout: the holders of every expert.
    slot_of: [experts, instances] int32, the expert's slot on each instance, -1 where it has none.
    first_replica: [instances] int32, slots of all earlier instances. A replica's id is that plus
        its slot: its position instance by instance, EPLB's physical id.
    """

    layout: LayerLayout
    slot_of: NDArray[np.int32]
    first_replica: NDArray[np.int32]

    @classmethod
    def from_slots(cls, slots: Sequence[Sequence[int]], num_experts: int) -> ReplicaTables:
        """slots: per instance, the logical experts it holds, in slot order; may be uneven."""
        layout = LayerLayout.from_slots(slots, num_experts)
        slot_of = np.full((num_experts, len(slots)), -1, np.int32)
        for instance, experts in enumerate(slots):
            slot_of[list(experts), instance] = np.arange(len(experts), dtype=np.int32)
        sizes = [0, *map(len, slots)]
        return cls(layout, slot_of, np.cumsum(sizes[:-1], dtype=np.int32))


class ScheduleTensors(NamedTuple):
    """All int32, on the device of the ids. The first four are overwritten by the next schedule.

    instance_of_expert: [experts], -1 where the expert is not activated.
    activated: [instances], distinct activated experts per instance.
    optimal: [1], 1 if no assignment has a smaller maximum of `activated`, 0 if not proved.
    invalid: [1], 1 if an id was out of range; such ids count as padding. Nothing waits for the
        device here, so it is for the caller to look at, where waiting costs nothing.
    slot_ids: [tokens, top_k], the slot where `instance_index` computes this choice, -1 if it
        does not.
    replica_ids: [tokens, top_k], the replica that computes this choice, -1 for padding.
    """

    instance_of_expert: torch.Tensor
    activated: torch.Tensor
    optimal: torch.Tensor
    invalid: torch.Tensor
    slot_ids: torch.Tensor
    replica_ids: torch.Tensor


class ActivationSchedule(Protocol):
    """One layer's scheduler; one thread and one stream at a time."""

    def schedule(self, expert_ids: torch.Tensor, instance_index: int) -> ScheduleTensors:
        """expert_ids: [tokens, top_k] int32 logical ids, -1 = padding, contiguous.

        instance_index: the instance whose slots are asked for; the rest is equal on all.
        """
        ...

    def warm_up(self) -> None:
        """Compiles and loads what the first schedule would."""
        ...


def check_arguments(
    expert_ids: torch.Tensor, instance_index: int, device: torch.device, num_instances: int
) -> None:
    """Raise ValueError when they are outside the contract of `ActivationSchedule.schedule`."""
    if expert_ids.dim() != 2 or expert_ids.dtype != torch.int32 or not expert_ids.is_contiguous():
        raise ValueError(
            "expert_ids must be contiguous int32 [tokens, top_k], got "
            f"{expert_ids.dtype} with shape {tuple(expert_ids.shape)}"
        )
    if expert_ids.device != device:
        raise ValueError(f"expert_ids are on {expert_ids.device}, the schedule is on {device}")
    if not 0 <= instance_index < num_instances:
        raise ValueError(
            f"instance_index {instance_index} is no instance; they run from 0 to "
            f"{num_instances - 1}"
        )
