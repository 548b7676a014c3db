"""Which expert instance holds which experts: the value, and what may be asked of it.

This module does not know how a good placement is found, of weights and memory, or how a change
is carried out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from janus_moe.errors import ConfigError
from janus_moe.policy.activation.layout import LayerLayout


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Immutable and valid: every expert of every layer lives somewhere, never twice in one place.

    epoch: grows with every change; workers compare it before they trust each other's answers.
    slots: [moe layers][expert instances] logical expert ids in slot order; instances may differ
        in the number of slots, and an instance may be empty in some layers but not in all.
    """

    epoch: int
    num_experts: int
    slots: tuple[tuple[tuple[int, ...], ...], ...]

    def __post_init__(self) -> None:
        if not self.slots or not self.slots[0]:
            raise ConfigError("a placement needs at least one layer and one expert instance")
        for layer, instances in enumerate(self.slots):
            if len(instances) != self.num_instances:
                raise ConfigError(
                    f"layer {layer} is placed on {len(instances)} expert instances but layer 0 on "
                    f"{self.num_instances}; place every layer on the same instances"
                )
            self._check_layer(layer, instances)
        for instance in range(self.num_instances):
            if not any(instances[instance] for instances in self.slots):
                raise ConfigError(
                    f"expert instance {instance} holds no expert in any layer; use at most "
                    f"{self.num_instances - 1} expert instances or give it a slot"
                )

    def _check_layer(self, layer: int, instances: tuple[tuple[int, ...], ...]) -> None:
        for instance, experts in enumerate(instances):
            if len(set(experts)) < len(experts):
                twice = next(expert for expert in experts if experts.count(expert) > 1)
                raise ConfigError(
                    f"expert {twice} of layer {layer} has two replicas on instance {instance}; "
                    "put them on different instances"
                )
            for expert in experts:
                if not 0 <= expert < self.num_experts:
                    raise ConfigError(
                        f"instance {instance} holds expert {expert} of layer {layer}, but ids "
                        f"run from 0 to {self.num_experts - 1}"
                    )
        missing = set(range(self.num_experts)).difference(*instances)
        if missing:
            raise ConfigError(
                f"{len(missing)} of {self.num_experts} experts of layer {layer} have no slot, the "
                f"first is expert {min(missing)}; give every expert at least one"
            )

    @property
    def num_layers(self) -> int:
        """MoE layers only."""
        return len(self.slots)

    @property
    def num_instances(self) -> int:
        return len(self.slots[0])

    def layer_layout(self, layer: int) -> LayerLayout:
        """What the activation scheduler needs of one layer."""
        return LayerLayout.from_slots(self.slots[layer], self.num_experts)

    def slot_table(self, layer: int, instance: int) -> NDArray[np.int32]:
        """[experts] int32, the expert's slot on that instance or -1."""
        table = np.full(self.num_experts, -1, np.int32)
        experts = self.slots[layer][instance]
        table[list(experts)] = np.arange(len(experts), dtype=np.int32)
        return table

    def slot_labels(self, layer: int, instance: int) -> NDArray[np.int32]:
        """[experts, max_replicas] int32, `labels` for a `Scheduler` that writes local slots.

        The slot of the replicas on that instance, -1 for those on others; columns as in
        `layer_layout(layer).holders`.
        """
        holders = self.layer_layout(layer).holders
        slots = self.slot_table(layer, instance)
        return np.where(holders == instance, slots[:, None], np.int32(-1))

    def replicas(self, layer: int) -> NDArray[np.int32]:
        """[experts] int32, copies of each expert."""
        held = np.array([e for experts in self.slots[layer] for e in experts], np.int64)
        return np.bincount(held, minlength=self.num_experts).astype(np.int32)
