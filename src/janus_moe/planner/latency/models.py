"""What a model is, as far as time and memory go: sizes, without weights, files or code.

Matrices are counted, vectors (norms, biases) are not: they are below 0.1 % of any model here.
"""

from __future__ import annotations

import msgspec
import numpy as np

from janus_moe.errors import ConfigError
from janus_moe.planner.latency.arrays import Array, Numbers
from janus_moe.planner.latency.precision import BYTES_PER_WEIGHT, Format
from janus_moe.spec import Spec

Matrix = tuple[Numbers, Numbers, Numbers]


class GqaFacts(Spec, frozen=True, tag="gqa", tag_field="kind"):
    """Grouped-query attention. window: positions seen in `num_windowed_layers` of the layers."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None
    num_windowed_layers: int = 0
    bias: bool = False

    @property
    def cache_row(self) -> int:
        """Numbers that one token keeps in the cache of one layer."""
        return 2 * self.num_kv_heads * self.head_dim

    @property
    def flops_per_position(self) -> int:
        """Operations of one query token for each position it attends to."""
        return 4 * self.num_heads * self.head_dim

    def matrices(self, hidden: int, tp: Numbers = 1) -> tuple[Matrix, ...]:
        """(count, rows, columns) of the products a token goes through on each of `tp` devices that
        share the heads, in order."""
        heads = self.num_heads / np.asarray(tp)
        rows = (heads + 2 * np.maximum(self.num_kv_heads / np.asarray(tp), 1)) * self.head_dim
        return (1, rows, hidden), (1, hidden, heads * self.head_dim)

    def cache_shards(self, tp: Numbers) -> Numbers:
        """Devices among `tp` that the cache of a token is divided among: by KV heads."""
        return np.minimum(tp, self.num_kv_heads)


class MlaFacts(Spec, frozen=True, tag="mla", tag_field="kind"):
    """Multi-head latent attention, absorbed (arXiv 2405.04434 section 2.1)."""

    num_heads: int
    kv_lora_rank: int
    nope_head_dim: int
    rope_head_dim: int
    value_head_dim: int
    q_lora_rank: int | None = None

    @property
    def cache_row(self) -> int:
        """The latent and the rotary key."""
        return self.kv_lora_rank + self.rope_head_dim

    @property
    def flops_per_position(self) -> int:
        """Scores against latent and rotary key, and the mix of latents, for all heads."""
        return 2 * self.num_heads * (2 * self.kv_lora_rank + self.rope_head_dim)

    def matrices(self, hidden: int, tp: Numbers = 1) -> tuple[Matrix, ...]:
        """(count, rows, columns) as in `GqaFacts`; the absorbed products count once per head, and
        every device has the projections to the latents."""
        heads, latent = self.num_heads / np.asarray(tp), self.kv_lora_rank
        query = heads * (self.nope_head_dim + self.rope_head_dim)
        down = self.kv_lora_rank + self.rope_head_dim
        first = (
            ((1, query + down, hidden),)
            if self.q_lora_rank is None
            else ((1, self.q_lora_rank + down, hidden), (1, query, self.q_lora_rank))
        )
        absorbed = ((heads, latent, self.nope_head_dim), (heads, self.value_head_dim, latent))
        return (*first, *absorbed, (1, hidden, heads * self.value_head_dim))

    def cache_shards(self, tp: Numbers) -> Numbers:
        """Every device has the whole latent."""
        return np.ones_like(np.asarray(tp))


class ModelFacts(Spec, frozen=True):
    """One model.

    num_dense_layers: layers without experts, of `dense_width`. shared_width: all shared experts of
    a layer together, 0 = none. weight_dtype, expert_dtype: as published; an `Oracle` may be asked
    about others. source: where the sizes are from. note: what they leave out.
    """

    name: str
    title: str
    source: str
    num_layers: int
    num_dense_layers: int
    hidden_size: int
    attention: GqaFacts | MlaFacts
    num_experts: int
    top_k: int
    expert_width: int
    vocab_size: int
    shared_width: int = 0
    dense_width: int = 0
    tied_embeddings: bool = False
    max_position: int = 0
    weight_dtype: Format = "bfloat16"
    expert_dtype: Format = "bfloat16"
    aliases: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        positive = (
            "num_layers",
            "hidden_size",
            "num_experts",
            "top_k",
            "expert_width",
            "vocab_size",
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(f"model {self.name}: {name} must be 1 or more")
        if not 0 <= self.num_dense_layers < self.num_layers:
            raise ConfigError(
                f"model {self.name}: {self.num_dense_layers} of {self.num_layers} layers without "
                "experts leave none with experts"
            )
        if self.top_k > self.num_experts:
            raise ConfigError(f"model {self.name}: top-{self.top_k} of {self.num_experts} experts")

    @property
    def num_moe_layers(self) -> int:
        return self.num_layers - self.num_dense_layers

    @property
    def expert_weights(self) -> int:
        """Weights of one routed expert of one layer."""
        return 3 * self.hidden_size * self.expert_width

    @property
    def attention_layer_weights(self) -> int:
        """Weights of one layer's attention."""
        return int(self._attention_layer_weights(1))

    @property
    def attention_side_weights(self) -> int:
        """All that an attention instance holds: attention, dense and shared MLPs, embeddings."""
        return int(self.attention_side_weights_of(1))

    def attention_side_weights_of(self, tp: Numbers) -> Array:
        """The same on each of `tp` devices that share the heads and the vocabulary."""
        mlp = 3 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        return np.asarray(
            self.num_layers * self._attention_layer_weights(tp)
            + self.num_dense_layers * mlp * self.dense_width
            + self.num_moe_layers * mlp * self.shared_width
            + embeddings / np.asarray(tp)
        )

    def _attention_layer_weights(self, tp: Numbers) -> Array:
        matrices = self.attention.matrices(self.hidden_size, tp)
        return np.asarray(sum(n * rows * columns for n, rows, columns in matrices))

    @property
    def router_weights(self) -> int:
        """Gates of all layers, which every expert instance holds."""
        return self.num_moe_layers * self.num_experts * self.hidden_size

    @property
    def routed_weights(self) -> int:
        """One copy of every routed expert."""
        return self.num_moe_layers * self.num_experts * self.expert_weights

    @property
    def total_weights(self) -> int:
        return self.attention_side_weights + self.router_weights + self.routed_weights

    def expert_bytes(self, dtype: Format | None = None) -> float:
        """Bytes of one expert of one layer in `dtype`, by default as published."""
        return self.expert_weights * BYTES_PER_WEIGHT[dtype or self.expert_dtype]

    def attention_side_bytes(self, dtype: Format | None = None) -> float:
        """Weights of one attention instance in `dtype`, by default as published."""
        return self.attention_side_weights * BYTES_PER_WEIGHT[dtype or self.weight_dtype]

    def attention_shard_bytes(self, tp: Numbers) -> Array:
        """Weights of an attention instance on each of its `tp` devices."""
        return self.attention_side_weights_of(tp) * BYTES_PER_WEIGHT[self.weight_dtype]

    def router_bytes(self) -> float:
        """Gates stay in bfloat16 or wider; 2 bytes are counted."""
        return 2.0 * self.router_weights

    def kv_bytes_per_token_layer(self, cache: Format = "bfloat16") -> float:
        """KV cache of one token in one layer."""
        return self.attention.cache_row * BYTES_PER_WEIGHT[cache]

    def kv_bytes_per_sequence(self, context: float, cache: Format = "bfloat16") -> float:
        """KV cache of a sequence of `context` tokens over all layers; windows keep no more."""
        attention, windowed, seen = self.attention, 0, context
        if isinstance(attention, GqaFacts) and attention.window:
            windowed, seen = attention.num_windowed_layers, min(context, attention.window)
        positions = (self.num_layers - windowed) * context + windowed * seen
        return positions * self.kv_bytes_per_token_layer(cache)


def with_precision(model: ModelFacts, weights: Format | None, experts: Format | None) -> ModelFacts:
    """The same model quantised otherwise."""
    return msgspec.structs.replace(
        model,
        weight_dtype=weights or model.weight_dtype,
        expert_dtype=experts or weights or model.expert_dtype,
    )
