"""The attention half of a layer with grouped-query attention: its weights from a checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor

from janus_moe.kernels.gqa_layer import GqaLayerWeights
from janus_moe.model.layers import pair_order
from janus_moe.model.loading import Loader
from janus_moe.spec import GqaSpec, RopeSpec


def load_gqa_layer(
    loader: Loader, spec: GqaSpec, rope: RopeSpec, eps: float, layer: int
) -> GqaLayerWeights:
    """eps: of the norms."""
    orders = (_heads(rope, spec.num_heads), _heads(rope, spec.num_kv_heads), None)
    biases = ("q_bias", "k_bias", "v_bias")
    return GqaLayerWeights(
        input_norm=loader.tensor("input_norm", layer),
        qkv=loader.rows(("q", "k", "v"), layer, orders),
        qkv_bias=loader.rows(biases, layer, orders) if spec.bias else None,
        qk_norm=_norm(loader, spec, rope, layer) if spec.qk_norm else None,
        o=loader.tensor("o", layer),
        o_bias=loader.tensor("o_bias", layer) if spec.bias else None,
        output_norm=loader.tensor("mlp_norm", layer),
        eps=eps,
        scale=spec.scale,
    )


def _heads(rope: RopeSpec, num_heads: int) -> Tensor:
    """[num_heads * head_dim]: `pair_order` within each head's rows."""
    order = pair_order(rope)
    return (torch.arange(num_heads)[:, None] * len(order) + order).view(-1)


def _norm(loader: Loader, spec: GqaSpec, rope: RopeSpec, layer: int) -> Tensor:
    order = pair_order(rope)
    query, key = loader.rows(("q_norm", "k_norm"), layer, (order, order)).view(2, 1, -1)
    return torch.cat((query.expand(spec.num_heads, -1), key.expand(spec.num_kv_heads, -1)))
