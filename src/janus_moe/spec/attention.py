"""Kinds of attention as descriptions: weights, cache and operations of one layer.

A kind says what its layer holds, keeps and multiplies; loading, memory planning and latency laws
ask it. What it computes is in `janus_moe.model`, one class for each kind here. This module knows
neither torch nor how long anything takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from janus_moe.spec.base import Spec

Numbers = float | NDArray[Any]
"""A number, or an array of numbers that broadcasts against the others."""

Matrix = tuple[Numbers, Numbers, Numbers]
"""(count, rows, columns) of a matrix product."""

Shape = tuple[int, ...]

CacheOperation = Literal["gqa", "mla"]
"""The operation that reads the cache, as latency laws and profiles name it."""


class RopeSpec(Spec, frozen=True):
    """Rotary position embedding with static frequencies.

    inv_freq: [rotary_dim / 2] inverse frequencies, scaling (YaRN, llama3, linear) included.
    attention_factor: factor on cos and sin.
    layout: "halves" pairs dimension i with i + rotary_dim/2; "interleaved" pairs 2i with 2i+1.
    """

    inv_freq: tuple[float, ...]
    attention_factor: float = 1.0
    layout: Literal["halves", "interleaved"] = "halves"


class AttentionKind(Spec, frozen=True):
    """What every kind of attention says of itself.

    num_heads: query heads.
    scale: factor of the scores before the softmax.
    bias: whether the projections have biases.
    rope: how positions are encoded.
    """

    num_heads: int
    scale: float
    bias: bool
    rope: RopeSpec

    cache_operation: ClassVar[CacheOperation]

    @property
    def cache_shapes(self) -> tuple[tuple[int, int], ...]:
        """(heads, width) of the row that a token has in each tensor of the layer's cache."""
        raise NotImplementedError

    @property
    def cache_row(self) -> int:
        """Numbers that a token keeps in the cache of one layer."""
        return sum(heads * width for heads, width in self.cache_shapes)

    def visible(self, context: Numbers) -> Numbers:
        """Positions that the last of `context` tokens attends to."""
        return context

    def cached(self, context: Numbers) -> Numbers:
        """Numbers that a sequence of `context` tokens must keep in the cache of one layer."""
        return self.visible(context) * self.cache_row

    def tensors(self, hidden_size: int) -> Mapping[str, Shape]:
        """The layer's weights: role -> shape in the checkpoint."""
        raise NotImplementedError

    @property
    def flops_per_position(self) -> int:
        """Operations of one query token for each position that it attends to."""
        raise NotImplementedError

    @property
    def cache_heads(self) -> int:
        """Heads of the cache that are read apart from each other."""
        raise NotImplementedError

    def cache_shards(self, tp: Numbers) -> Numbers:
        """Devices among `tp` that the cache of a token is divided among."""
        raise NotImplementedError

    def matrices(self, hidden_size: int, tp: Numbers = 1) -> tuple[Matrix, ...]:
        """Products that a token goes through on each of `tp` devices sharing the heads, in order.

        They count the weights, too; vectors (norms, biases) are below 0.1 % and left out.
        """
        raise NotImplementedError


class GqaSpec(AttentionKind, frozen=True, tag="gqa"):
    """Grouped-query attention.

    qk_norm: whether each head of queries and keys has an RMSNorm.
    window: positions that a token attends to, itself included; None means all before it.
    """

    num_kv_heads: int
    head_dim: int
    qk_norm: bool
    window: int | None = None

    cache_operation: ClassVar[CacheOperation] = "gqa"

    @property
    def cache_shapes(self) -> tuple[tuple[int, int], ...]:
        """Keys, then values."""
        return ((self.num_kv_heads, self.head_dim),) * 2

    def visible(self, context: Numbers) -> Numbers:
        return context if self.window is None else np.minimum(context, self.window)

    def tensors(self, hidden_size: int) -> Mapping[str, Shape]:
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        shapes: dict[str, Shape] = {
            "q": (query, hidden_size),
            "k": (key, hidden_size),
            "v": (key, hidden_size),
            "o": (hidden_size, query),
        }
        if self.qk_norm:
            shapes |= dict.fromkeys(("q_norm", "k_norm"), (self.head_dim,))
        if self.bias:
            shapes |= {"q_bias": (query,), "k_bias": (key,), "v_bias": (key,)}
            shapes |= {"o_bias": (hidden_size,)}
        return shapes

    @property
    def flops_per_position(self) -> int:
        return 4 * self.num_heads * self.head_dim

    @property
    def cache_heads(self) -> int:
        return self.num_kv_heads

    def cache_shards(self, tp: Numbers) -> Numbers:
        """By heads of keys and values."""
        return np.minimum(tp, self.num_kv_heads)

    def matrices(self, hidden_size: int, tp: Numbers = 1) -> tuple[Matrix, ...]:
        heads = self.num_heads / np.asarray(tp)
        rows = (heads + 2 * np.maximum(self.num_kv_heads / np.asarray(tp), 1)) * self.head_dim
        return (1, rows, hidden_size), (1, hidden_size, heads * self.head_dim)


class MlaSpec(AttentionKind, frozen=True, tag="mla"):
    """Multi-head latent attention, absorbed (DeepSeek-V2, arXiv 2405.04434 section 2.1).

    q_lora_rank: width of the query latent; None means that queries are projected directly.
    kv_lora_rank: width of the latent that is key and value.
    nope_head_dim: dimensions of a query head without rotation.
    rope_head_dim: dimensions of a query head, and of the one key, that rotate.
    value_head_dim: dimensions of a value head.
    lora_norm_eps: of the norms of both latents.
    """

    q_lora_rank: int | None
    kv_lora_rank: int
    nope_head_dim: int
    rope_head_dim: int
    value_head_dim: int
    lora_norm_eps: float

    cache_operation: ClassVar[CacheOperation] = "mla"

    @property
    def cache_shapes(self) -> tuple[tuple[int, int], ...]:
        """The latent and the rotary key in one row, for all heads."""
        return ((1, self.kv_lora_rank + self.rope_head_dim),)

    def tensors(self, hidden_size: int) -> Mapping[str, Shape]:
        query = self.num_heads * (self.nope_head_dim + self.rope_head_dim)
        rank = self.q_lora_rank
        shapes: dict[str, Shape] = {"q": (query, hidden_size)}
        if rank is not None:
            shapes = {"q_a": (rank, hidden_size), "q_a_norm": (rank,), "q_b": (query, rank)}
        up = self.num_heads * (self.nope_head_dim + self.value_head_dim)
        shapes |= {
            "kv_a": (self.cache_row, hidden_size),
            "kv_a_norm": (self.kv_lora_rank,),
            "kv_b": (up, self.kv_lora_rank),
            "o": (hidden_size, self.num_heads * self.value_head_dim),
        }
        if self.bias:
            shapes |= {} if rank is None else {"q_a_bias": (rank,)}
            shapes |= {"kv_a_bias": (self.cache_row,), "o_bias": (hidden_size,)}
        return shapes

    @property
    def flops_per_position(self) -> int:
        """Scores against latent and rotary key, and the mix of latents, for all heads."""
        return 2 * self.num_heads * (2 * self.kv_lora_rank + self.rope_head_dim)

    @property
    def cache_heads(self) -> int:
        return 1

    def cache_shards(self, tp: Numbers) -> Numbers:
        """Every device has the whole latent."""
        return np.ones_like(np.asarray(tp))

    def matrices(self, hidden_size: int, tp: Numbers = 1) -> tuple[Matrix, ...]:
        """The absorbed products count once per head; every device projects to the latents."""
        heads, latent = self.num_heads / np.asarray(tp), self.kv_lora_rank
        query = heads * (self.nope_head_dim + self.rope_head_dim)
        down = self.cache_row
        first: tuple[Matrix, ...] = ((1, query + down, hidden_size),)
        if self.q_lora_rank is not None:
            rank = self.q_lora_rank
            first = ((1, rank + down, hidden_size), (1, query, rank))
        absorbed = ((heads, latent, self.nope_head_dim), (heads, self.value_head_dim, latent))
        return (*first, *absorbed, (1, hidden_size, heads * self.value_head_dim))


AttentionSpec = GqaSpec | MlaSpec
"""The kinds there are; a message holds any of them."""
