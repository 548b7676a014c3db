"""Everything an expert instance computes: the gates, and the experts in its own slots.

Knows nothing of placement, scheduling or the attention pool. Call it under torch.inference_mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from janus_moe.kernels.grouped_experts import grouped_experts
from janus_moe.kernels.route import route
from janus_moe.model.checkpoint import Checkpoint, OnBytes, ignore_bytes
from janus_moe.model.loading import Loader
from janus_moe.model.slot_storage import BeforeCopy, extended, moved
from janus_moe.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class ExpertLayer:
    """One MoE layer's share of an expert instance.

    router: [experts, hidden], of all logical experts.
    router_bias: [experts] float32, added for the choice only; None means none.
    slots: [slots] logical expert in each slot at the start.
    gate_up: [slots + spare, 2 * width, hidden], gate above up; their number may change later.
    down: [slots + spare, hidden, width].
    """

    router: Tensor
    router_bias: Tensor | None
    slots: tuple[int, ...]
    gate_up: Tensor
    down: Tensor

    @property
    def slot_bytes(self) -> int:
        """Weights of one slot."""
        return sum(math.prod(t.shape[1:]) * t.itemsize for t in (self.gate_up, self.down))

    def extended(self, num_slots: int) -> ExpertLayer | None:
        """The same layer with more slots in the same memory; None when it has no room."""
        gate_up, down = (extended(slots, num_slots) for slots in (self.gate_up, self.down))
        if gate_up is None or down is None:
            return None
        return replace(self, gate_up=gate_up, down=down)

    def moved(
        self, num_slots: int, moves: Mapping[int, int], before_copy: BeforeCopy
    ) -> ExpertLayer:
        """The same layer in memory of its own.

        num_slots: there.
        moves: slot -> slot there; other slots are left behind.
        """
        gate_up, down = (
            moved(slots, num_slots, moves, before_copy) for slots in (self.gate_up, self.down)
        )
        return replace(self, gate_up=gate_up, down=down)


@dataclass(frozen=True, slots=True)
class ExpertModel:
    """Weights of one expert instance.

    spec: the model.
    layers: model layer id -> its share, which one thread may replace while others compute.
    """

    spec: ModelSpec
    layers: dict[int, ExpertLayer]

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        checkpoint: Checkpoint,
        slots_per_layer: Sequence[Sequence[int]],
        device: torch.device | str,
        on_bytes: OnBytes = ignore_bytes,
        spare_slots: int = 0,
    ) -> ExpertModel:
        """The weights of an expert instance.

        slots_per_layer: [moe layers][slots] logical expert ids; an expert may have several.
        on_bytes: told the bytes of each tensor; `expert_pool_bytes` in total.
        spare_slots: more room per layer, to be filled later.
        """
        loader = Loader(spec, checkpoint, torch.device(device), on_bytes)
        layers = zip(spec.moe_layer_ids, slots_per_layer, strict=True)
        return cls(
            spec,
            {layer: _load_layer(loader, spec, layer, s, spare_slots) for layer, s in layers},
        )

    def num_slots(self, layer: int) -> int:
        """Experts that a layer has room for."""
        return self.layers[layer].gate_up.shape[0]

    def route(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What the gate of a layer chooses for tokens.

        hidden: [tokens, hidden].

        Returns expert ids [tokens, top_k] int32 and weights [tokens, top_k] float32.
        """
        weights = self.layers[layer]
        return route(hidden, weights.router, weights.router_bias, self.spec.moe.router)

    def compute(
        self,
        layer: int,
        hidden: Tensor,
        slot_ids: Tensor,
        weights: Tensor,
        sums: torch.dtype = torch.float32,
    ) -> Tensor:
        """Weighted sums over this instance's slots, [tokens, hidden] of dtype `sums`.

        hidden: [tokens, hidden].
        slot_ids: [tokens, top_k] int32; -1 where another instance computes.
        weights: [tokens, top_k] float32.
        """
        experts = self.layers[layer]
        return grouped_experts(hidden, experts.gate_up, experts.down, slot_ids, weights, sums=sums)


def _load_layer(
    loader: Loader, spec: ModelSpec, layer: int, slots: Sequence[int], spare: int
) -> ExpertLayer:
    width = spec.moe.intermediate_size
    gate_up, down = loader.experts(layer, len(slots) + spare)
    for slot, expert in enumerate(slots):
        loader.into(gate_up[slot, :width], "expert_gate", layer, expert)
        loader.into(gate_up[slot, width:], "expert_up", layer, expert)
        loader.into(down[slot], "expert_down", layer, expert)
    has_bias = spec.moe.router.correction_bias
    return ExpertLayer(
        router=loader.tensor("router", layer),
        router_bias=loader.tensor("router_bias", layer) if has_bias else None,
        slots=tuple(slots),
        gate_up=gate_up,
        down=down,
    )
