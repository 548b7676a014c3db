"""Multi-head latent attention of one layer, in the absorbed form for prefill and decode alike.

The cache holds one latent row per token (DeepSeek-V2, arXiv 2405.04434 section 2.1). The key
up-projection is applied to the query and the value up-projection to the result, so that attention
is multi-query attention over the latents and no key or value is ever expanded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from janus_moe.kernels.linear import head_linear, linear
from janus_moe.kernels.paged_attention import paged_attention, write_kv
from janus_moe.kernels.rms_norm import rms_norm
from janus_moe.kernels.rotate_and_cache import rotate_
from janus_moe.model.kv_cache import StepInput
from janus_moe.model.loading import Loader
from janus_moe.model.rotation import Rotations, pair_order
from janus_moe.spec import MlaSpec, RopeSpec


@dataclass(frozen=True, slots=True)
class MlaAttention:
    """Weights of one layer; rotary pairs are adjacent.

    Rows of `down` and `up_query`, with R = rope_head_dim and L = kv_lora_rank:
      with query latent     down: query latent | key rotary R | latent L
                            up_query: heads * nope | heads * R
      without               down: heads * nope | heads * R | key rotary R | latent L

    kind: its description.
    eps: of the norms before the attention and before the MLP.
    input_norm: [hidden], before the attention.
    down: [rows as above, hidden].
    down_bias: [rows of down]; None means none.
    query_norm: [q_lora_rank]; None means that there is no query latent.
    up_query: [rows as above, q_lora_rank]; None means that there is no query latent.
    latent_norm: [kv_lora_rank].
    up_key: [heads, nope, L].
    up_value: [heads, L, value_head_dim].
    o: [hidden, heads * value_head_dim].
    o_bias: [hidden]; None means none.
    output_norm: [hidden], before the MLP.
    rotations: [positions, R / 2] complex64, factor of each position and pair.
    """

    kind: MlaSpec
    eps: float
    input_norm: Tensor
    down: Tensor
    down_bias: Tensor | None
    query_norm: Tensor | None
    up_query: Tensor | None
    latent_norm: Tensor
    up_key: Tensor
    up_value: Tensor
    o: Tensor
    o_bias: Tensor | None
    output_norm: Tensor
    rotations: Tensor

    @classmethod
    def load(
        cls, loader: Loader, kind: MlaSpec, eps: float, layer: int, rotations: Rotations
    ) -> MlaAttention:
        """The weights of a layer.

        eps: of the norms before the attention and before the MLP.
        """
        has_latent, rope = kind.q_lora_rank is not None, kind.rope
        query_order, key_order = _query_order(kind, rope), _key_order(kind, rope)
        orders = (None if has_latent else query_order, key_order)
        up_key, up_value = _up_projections(loader, kind, layer)
        return cls(
            kind=kind,
            eps=eps,
            input_norm=loader.tensor("input_norm", layer),
            down=loader.rows(("q_a" if has_latent else "q", "kv_a"), layer, orders),
            down_bias=_down_bias(loader, kind, key_order, layer) if kind.bias else None,
            query_norm=loader.tensor("q_a_norm", layer) if has_latent else None,
            up_query=loader.rows(("q_b",), layer, (query_order,)) if has_latent else None,
            latent_norm=loader.tensor("kv_a_norm", layer),
            up_key=up_key,
            up_value=up_value,
            o=loader.tensor("o", layer),
            o_bias=loader.tensor("o_bias", layer) if kind.bias else None,
            output_norm=loader.tensor("mlp_norm", layer),
            rotations=rotations.of(rope),
        )

    def __call__(
        self, hidden: Tensor, step: StepInput, cache: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Contract of `AttentionHalf`; the cache is one tensor of latent rows."""
        (latents,) = cache
        normed = rms_norm(hidden, self.input_norm, self.eps)
        hidden = hidden + self._attend(normed, step.rotation(self.rotations), step, latents)
        return hidden, rms_norm(hidden, self.output_norm, self.eps)

    def _attend(self, normed: Tensor, rotation: Tensor, step: StepInput, latents: Tensor) -> Tensor:
        kind, tokens = self.kind, normed.shape[0]
        nope, rotary, latent = self._project(normed)
        rotary = rotate_(rotary, rotation).to(normed.dtype)
        latent = rms_norm(latent, self.latent_norm, kind.lora_norm_eps).unsqueeze(1)
        query_rotary, key_rotary = torch.split(rotary, [kind.num_heads, 1], dim=1)
        write_kv(latents, torch.cat((latent, key_rotary), dim=-1), step.slot_mapping)
        nope_in_latent = head_linear(nope, self.up_key)
        query = torch.cat((nope_in_latent, query_rotary), dim=-1)
        out = paged_attention(query, latents, latents, step.batch, kind.scale, kind.kv_lora_rank)
        values = head_linear(out, self.up_value)
        return linear(values.reshape(tokens, -1), self.o, self.o_bias)

    def _project(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries without position [tokens, heads, nope], rotary queries and last the rotary key
        [tokens, heads + 1, rope], latent [tokens, kv_lora_rank]; not normalised, not rotated."""
        kind, tokens = self.kind, normed.shape[0]
        heads, rope = kind.num_heads, kind.rope_head_dim
        nope_rows = heads * kind.nope_head_dim
        down = linear(normed, self.down, self.down_bias)
        if self.up_query is None or self.query_norm is None:
            sizes = [nope_rows, (heads + 1) * rope, kind.kv_lora_rank]
            nope, rotary, latent = torch.split(down, sizes, dim=-1)
        else:
            sizes = [self.query_norm.shape[0], rope, kind.kv_lora_rank]
            query_latent, key_rotary, latent = torch.split(down, sizes, dim=-1)
            query_latent = rms_norm(query_latent, self.query_norm, kind.lora_norm_eps)
            query = linear(query_latent, self.up_query)
            nope, rotary = torch.split(query, [nope_rows, heads * rope], dim=-1)
            rotary = torch.cat((rotary, key_rotary), dim=-1)
        return (
            nope.view(tokens, heads, kind.nope_head_dim),
            rotary.view(tokens, heads + 1, rope),
            latent,
        )


def _query_order(kind: MlaSpec, rope: RopeSpec) -> Tensor:
    """Stored rows are per head nope | rope; ours are all heads' nope, then all heads' rope."""
    heads = torch.arange(kind.num_heads)[:, None] * (kind.nope_head_dim + kind.rope_head_dim)
    nope = heads + torch.arange(kind.nope_head_dim)
    rotary = heads + kind.nope_head_dim + pair_order(rope)
    return torch.cat((nope.view(-1), rotary.view(-1)))


def _key_order(kind: MlaSpec, rope: RopeSpec) -> Tensor:
    """Stored rows are latent | rotary key; ours are rotary key | latent."""
    return torch.cat((kind.kv_lora_rank + pair_order(rope), torch.arange(kind.kv_lora_rank)))


def _down_bias(loader: Loader, kind: MlaSpec, key_order: Tensor, layer: int) -> Tensor:
    """The architecture has no bias on a direct query projection; that part is zero."""
    if kind.q_lora_rank is not None:
        return loader.rows(("q_a_bias", "kv_a_bias"), layer, (None, key_order))
    key_bias = loader.rows(("kv_a_bias",), layer, (key_order,))
    query_rows = kind.num_heads * (kind.nope_head_dim + kind.rope_head_dim)
    return torch.cat((key_bias.new_zeros(query_rows), key_bias))


def _up_projections(loader: Loader, kind: MlaSpec, layer: int) -> tuple[Tensor, Tensor]:
    """The two halves of kv_b, laid out as their products read them: the kernel of float32 along the
    rows of the result, torch along memory. In the stored layout its bfloat16 takes up to twelve
    times as long on a CPU."""
    kv_b = loader.tensor("kv_b", layer).view(kind.num_heads, -1, kind.kv_lora_rank).transpose(1, 2)
    key, value = torch.split(kv_b, [kind.nope_head_dim, kind.value_head_dim], dim=2)
    if value.dtype == torch.float32:
        value = value.transpose(1, 2).contiguous().transpose(1, 2)
    else:
        value = value.contiguous()
    return key.contiguous().transpose(1, 2), value
