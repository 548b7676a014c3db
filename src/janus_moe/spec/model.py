"""What a model is, read from its configuration: sizes, kinds of layers, formats; no weights.

One description serves the engine and the planner, also of models that only the planner knows.
This module knows nothing of torch, files or names of tensors.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from janus_moe.errors import ConfigError
from janus_moe.spec.attention import AttentionSpec
from janus_moe.spec.base import Spec
from janus_moe.spec.formats import DTYPE_BYTES, Dtype, WeightFormat

MlpKind = Literal["moe", "dense"]


class RouterSpec(Spec, frozen=True):
    """How router logits become the expert ids and weights of a token.

    top_k: experts of a token.
    scoring: softmax or sigmoid over the expert logits.
    normalize: whether the weights of the chosen experts are divided by their sum.
    scaling_factor: factor of the weights.
    num_groups: groups of experts that a choice is limited by; 1 means none.
    top_groups: groups that a token may choose from.
    group_score: "max" (DeepSeek-V2) or "top2_sum" (DeepSeek-V3).
    correction_bias: a learned bias that counts for the choice but not for the weights.
    logits_dtype: what the gate's matrix product runs in; "model" means the model's own dtype.
    """

    top_k: int
    scoring: Literal["softmax", "sigmoid"]
    normalize: bool
    scaling_factor: float = 1.0
    num_groups: int = 1
    top_groups: int = 1
    group_score: Literal["max", "top2_sum"] = "max"
    correction_bias: bool = False
    logits_dtype: Literal["model", "float32"] = "model"


class MoeSpec(Spec, frozen=True):
    """The experts of every MoE layer.

    num_experts: routed experts.
    intermediate_size: width of a routed expert.
    router: how tokens choose among them.
    shared_intermediate_size: width of the shared experts together; 0 means none.
    """

    num_experts: int
    intermediate_size: int
    router: RouterSpec
    shared_intermediate_size: int = 0


class LayerSpec(Spec, frozen=True):
    """What one layer consists of.

    attention: place of its kind in `ModelSpec.attention`.
    mlp: "moe" for routed experts, "dense" for one MLP.
    """

    attention: int = 0
    mlp: MlpKind = "moe"


class ModelSpec(Spec, frozen=True, dict=True):
    """Everything the workers and the planner must know of a model, without opening its weights.

    family: `model_type` of its config.json.
    max_position: longest sequence; 0 means that the configuration does not say.
    rms_norm_eps: of the norms between layers and of heads.
    tie_embeddings: whether the LM head is the embedding.
    attention: the kinds of attention that layers have.
    layers: [layers] what each consists of.
    moe: the experts of the MoE layers.
    dense_intermediate_size: MLP width of the dense layers; 0 means that there are none.
    dtype: of activations and KV cache.
    weight_format: of all matrices except routed experts and gates.
    expert_format: of the routed experts.
    eos_token_ids: tokens that end a text.
    name: what reports call it; "" means unnamed.
    """

    family: str
    hidden_size: int
    vocab_size: int
    max_position: int
    rms_norm_eps: float
    tie_embeddings: bool
    attention: tuple[AttentionSpec, ...]
    layers: tuple[LayerSpec, ...]
    moe: MoeSpec
    dense_intermediate_size: int
    dtype: Dtype
    weight_format: WeightFormat
    expert_format: WeightFormat
    eos_token_ids: tuple[int, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        for name, size in (
            ("hidden_size", self.hidden_size),
            ("vocab_size", self.vocab_size),
            ("num_experts", self.moe.num_experts),
            ("top_k", self.moe.router.top_k),
            ("intermediate_size of experts", self.moe.intermediate_size),
        ):
            if size < 1:
                raise ConfigError(f"model {self.name}: {name} must be 1 or more, got {size}")
        if self.moe.router.top_k > self.moe.num_experts:
            raise ConfigError(
                f"model {self.name}: top-{self.moe.router.top_k} of {self.moe.num_experts} experts"
            )
        if not self.moe_layer_ids:
            raise ConfigError(f"model {self.name}: none of {self.num_layers} layers has experts")
        if any(not 0 <= layer.attention < len(self.attention) for layer in self.layers):
            raise ConfigError(f"model {self.name}: a layer has an unknown kind of attention")

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @cached_property
    def moe_layer_ids(self) -> tuple[int, ...]:
        return tuple(i for i, layer in enumerate(self.layers) if layer.mlp == "moe")

    @property
    def num_moe_layers(self) -> int:
        return len(self.moe_layer_ids)

    @property
    def num_dense_layers(self) -> int:
        return self.num_layers - self.num_moe_layers

    def attention_of(self, layer: int) -> AttentionSpec:
        """The kind of attention that a layer has."""
        return self.attention[self.layers[layer].attention]

    @cached_property
    def attention_counts(self) -> tuple[tuple[AttentionSpec, int], ...]:
        """(kind of attention, number of layers with it)."""
        used = [layer.attention for layer in self.layers]
        return tuple((kind, used.count(place)) for place, kind in enumerate(self.attention))

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert of one layer: gate, up and down projections."""
        hidden, width = self.hidden_size, self.moe.intermediate_size
        up, down = (self.expert_format.num_bytes(s) for s in ((width, hidden), (hidden, width)))
        return 2 * up + down

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot of an expert instance: an expert of every MoE layer."""
        return self.expert_bytes * self.num_moe_layers

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that a token keeps in the caches of all layers."""
        rows = sum(count * kind.cache_row for kind, count in self.attention_counts)
        return rows * DTYPE_BYTES[self.dtype]
