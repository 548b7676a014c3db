"""The attention half of a layer with grouped-query attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from janus_moe.kernels.gqa_layer import gqa_layer
from janus_moe.model.kv_cache import StepInput
from janus_moe.model.loading import Loader
from janus_moe.model.rotation import Rotations, pair_order
from janus_moe.spec import GqaSpec, RopeSpec


@dataclass(frozen=True, slots=True)
class GqaAttention:
    """Weights of one layer, as `kernels.gqa_layer.GqaTensors` describes them; pairs are adjacent.

    rotations: [positions, head_dim / 2] complex64, factor of each position and pair.
    """

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Tensor | None
    o: Tensor
    o_bias: Tensor | None
    output_norm: Tensor
    eps: float
    scale: float
    rotations: Tensor

    @classmethod
    def load(
        cls, loader: Loader, kind: GqaSpec, eps: float, layer: int, rotations: Rotations
    ) -> GqaAttention:
        """The weights of a layer.

        eps: of the norms.
        """
        rope = kind.rope
        orders = (_heads(rope, kind.num_heads), _heads(rope, kind.num_kv_heads), None)
        biases = ("q_bias", "k_bias", "v_bias")
        return cls(
            input_norm=loader.tensor("input_norm", layer),
            qkv=loader.rows(("q", "k", "v"), layer, orders),
            qkv_bias=loader.rows(biases, layer, orders) if kind.bias else None,
            qk_norm=_norm(loader, kind, layer) if kind.qk_norm else None,
            o=loader.tensor("o", layer),
            o_bias=loader.tensor("o_bias", layer) if kind.bias else None,
            output_norm=loader.tensor("mlp_norm", layer),
            eps=eps,
            scale=kind.scale,
            rotations=rotations.of(rope),
        )

    def __call__(
        self, hidden: Tensor, step: StepInput, cache: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Contract of `AttentionHalf`; the cache is keys and values."""
        keys, values = cache
        rotation = step.rotation(self.rotations)
        return gqa_layer(hidden, self, rotation, keys, values, step.slot_mapping, step.batch)


def _heads(rope: RopeSpec, num_heads: int) -> Tensor:
    """[num_heads * head_dim] int64: `pair_order` within each head's rows."""
    order = pair_order(rope)
    return (torch.arange(num_heads)[:, None] * len(order) + order).view(-1)


def _norm(loader: Loader, kind: GqaSpec, layer: int) -> Tensor:
    """[heads + kv_heads, head_dim], the norm weight of every head."""
    order = pair_order(kind.rope)
    query, key = loader.rows(("q_norm", "k_norm"), layer, (order, order)).view(2, 1, -1)
    return torch.cat((query.expand(kind.num_heads, -1), key.expand(kind.num_kv_heads, -1)))
