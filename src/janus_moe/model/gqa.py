"""Grouped-query attention of one layer over the paged cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from janus_moe.kernels.linear import linear
from janus_moe.kernels.paged_attention import paged_attention
from janus_moe.kernels.rotate_and_cache import rotate_and_cache
from janus_moe.model.kv_cache import StepInput
from janus_moe.model.layers import pair_order
from janus_moe.model.loading import Loader
from janus_moe.spec import GqaSpec, RopeSpec


@dataclass(frozen=True, slots=True)
class GqaAttention:
    """Weights of one layer; query and key rows have rotary pairs adjacent.

    qkv: [(heads + 2 * kv_heads) * head_dim, hidden]; o: [hidden, heads * head_dim].
    qk_norm: [heads + kv_heads, head_dim] norm weight of each query and key head.
    """

    spec: GqaSpec
    eps: float
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Tensor | None
    o: Tensor
    o_bias: Tensor | None

    @classmethod
    def load(
        cls, loader: Loader, spec: GqaSpec, rope: RopeSpec, eps: float, layer: int
    ) -> GqaAttention:
        orders = (_heads(rope, spec.num_heads), _heads(rope, spec.num_kv_heads), None)
        return cls(
            spec=spec,
            eps=eps,
            qkv=loader.rows(("q", "k", "v"), layer, orders),
            qkv_bias=loader.rows(("q_bias", "k_bias", "v_bias"), layer, orders)
            if spec.bias
            else None,
            qk_norm=_norm(loader, spec, rope, layer) if spec.qk_norm else None,
            o=loader.tensor("o", layer),
            o_bias=loader.tensor("o_bias", layer) if spec.bias else None,
        )

    def __call__(
        self, normed: Tensor, rotation: Tensor, step: StepInput, keys: Tensor, values: Tensor
    ) -> Tensor:
        """normed, result: [tokens, hidden]. Writes the tokens' keys and values to the cache."""
        spec = self.spec
        tokens = normed.shape[0]
        qkv = linear(normed, self.qkv, self.qkv_bias).view(tokens, -1, spec.head_dim)
        query = rotate_and_cache(
            qkv, self.qk_norm, self.eps, rotation, keys, values, step.slot_mapping
        )
        out = paged_attention(query, keys, values, step.batch, spec.scale, spec.head_dim)
        return linear(out.view(tokens, -1), self.o, self.o_bias)


def _heads(rope: RopeSpec, num_heads: int) -> Tensor:
    """[num_heads * head_dim]: `pair_order` within each head's rows."""
    order = pair_order(rope)
    return (torch.arange(num_heads)[:, None] * len(order) + order).view(-1)


def _norm(loader: Loader, spec: GqaSpec, rope: RopeSpec, layer: int) -> Tensor:
    order = pair_order(rope)
    query, key = loader.rows(("q_norm", "k_norm"), layer, (order, order)).view(2, 1, -1)
    return torch.cat((query.expand(spec.num_heads, -1), key.expand(spec.num_kv_heads, -1)))
