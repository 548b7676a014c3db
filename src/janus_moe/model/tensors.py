"""Which tensors a model has, with their names, shapes and owners, from its spec alone.

The one place that says this: validation, loading and memory planning all ask it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from janus_moe.families import find_family
from janus_moe.spec import DTYPE_BYTES, Dtype, GqaSpec, MlaSpec, ModelSpec

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint and what it is held as.

    dtype: of the copy in memory, not of the file.
    """

    name: str
    shape: Shape
    dtype: Dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


class TensorTable:
    """Looks tensors up by role ("q", "expert_up"); roles are the keys of `Family.tensor_names`."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._names = find_family(spec.family).tensor_names
        self._shapes = _shapes(spec)

    def info(self, role: str, layer: int = 0, expert: int = 0) -> TensorInfo:
        name = self._names[role].format(layer=layer, expert=expert)
        return TensorInfo(name, self._shapes[role], self._dtype(role))

    def _dtype(self, role: str) -> Dtype:
        if role == "router_bias":
            return "float32"
        if role == "router" and self._spec.moe.router.logits_dtype == "float32":
            return "float32"
        return self._spec.dtype


def attention_tensors(spec: ModelSpec) -> Iterator[TensorInfo]:
    """Everything one attention instance holds."""
    table = TensorTable(spec)
    yield from map(table.info, global_roles(spec))
    for layer in range(spec.num_layers):
        for role in layer_roles(spec, layer):
            yield table.info(role, layer)


def router_tensors(spec: ModelSpec) -> Iterator[TensorInfo]:
    """The gates of all MoE layers, which every expert instance holds."""
    table = TensorTable(spec)
    for layer in spec.moe_layer_ids:
        for role in router_roles(spec):
            yield table.info(role, layer)


def expert_tensors(spec: ModelSpec, layer: int, experts: Iterable[int]) -> Iterator[TensorInfo]:
    """The weights of some experts of one layer."""
    table = TensorTable(spec)
    for expert in experts:
        for role in ("expert_gate", "expert_up", "expert_down"):
            yield table.info(role, layer, expert)


def all_tensors(spec: ModelSpec) -> Iterator[TensorInfo]:
    """Everything that any worker will need."""
    yield from attention_tensors(spec)
    yield from router_tensors(spec)
    for layer in spec.moe_layer_ids:
        yield from expert_tensors(spec, layer, range(spec.moe.num_experts))


def global_roles(spec: ModelSpec) -> tuple[str, ...]:
    return ("embed", "final_norm") if spec.tie_embeddings else ("embed", "final_norm", "lm_head")


def router_roles(spec: ModelSpec) -> tuple[str, ...]:
    return ("router", "router_bias") if spec.moe.router.correction_bias else ("router",)


def layer_roles(spec: ModelSpec, layer: int) -> tuple[str, ...]:
    """What an attention instance holds of one layer."""
    roles = ("input_norm", "mlp_norm", *attention_roles(spec.attention))
    if not spec.moe_layers[layer]:
        return (*roles, "dense_gate", "dense_up", "dense_down")
    if spec.moe.shared_intermediate_size:
        return (*roles, "shared_gate", "shared_up", "shared_down")
    return roles


def attention_roles(attention: GqaSpec | MlaSpec) -> tuple[str, ...]:
    if isinstance(attention, GqaSpec):
        norms = ["q_norm", "k_norm"] if attention.qk_norm else []
        biases = ["q_bias", "k_bias", "v_bias", "o_bias"] if attention.bias else []
        return ("q", "k", "v", "o", *norms, *biases)
    if attention.q_lora_rank is None:
        biases = ["kv_a_bias", "o_bias"] if attention.bias else []
        return ("q", "kv_a", "kv_a_norm", "kv_b", "o", *biases)
    biases = ["q_a_bias", "kv_a_bias", "o_bias"] if attention.bias else []
    return ("q_a", "q_a_norm", "q_b", "kv_a", "kv_a_norm", "kv_b", "o", *biases)


def _shapes(spec: ModelSpec) -> dict[str, Shape]:
    hidden, moe = spec.hidden_size, spec.moe
    shapes: dict[str, Shape] = {
        "embed": (spec.vocab_size, hidden),
        "lm_head": (spec.vocab_size, hidden),
        "router": (moe.num_experts, hidden),
        "router_bias": (moe.num_experts,),
        "o_bias": (hidden,),
    }
    shapes |= dict.fromkeys(("final_norm", "input_norm", "mlp_norm"), (hidden,))
    for mlp, width in (
        ("dense", spec.dense_intermediate_size),
        ("shared", moe.shared_intermediate_size),
        ("expert", moe.intermediate_size),
    ):
        shapes |= dict.fromkeys((f"{mlp}_gate", f"{mlp}_up"), (width, hidden))
        shapes[f"{mlp}_down"] = (hidden, width)
    attention = spec.attention
    if isinstance(attention, GqaSpec):
        return shapes | _gqa_shapes(attention, hidden)
    return shapes | _mla_shapes(attention, hidden)


def _gqa_shapes(gqa: GqaSpec, hidden: int) -> dict[str, Shape]:
    query, key = gqa.num_heads * gqa.head_dim, gqa.num_kv_heads * gqa.head_dim
    return {
        "q": (query, hidden),
        "k": (key, hidden),
        "v": (key, hidden),
        "o": (hidden, query),
        "q_bias": (query,),
        "k_bias": (key,),
        "v_bias": (key,),
        "q_norm": (gqa.head_dim,),
        "k_norm": (gqa.head_dim,),
    }


def _mla_shapes(mla: MlaSpec, hidden: int) -> dict[str, Shape]:
    query = mla.num_heads * (mla.nope_head_dim + mla.rope_head_dim)
    rank = mla.q_lora_rank or 0
    return {
        "q": (query, hidden),
        "q_a": (rank, hidden),
        "q_a_bias": (rank,),
        "q_a_norm": (rank,),
        "q_b": (query, rank),
        "kv_a": (mla.cache_row, hidden),
        "kv_a_bias": (mla.cache_row,),
        "kv_a_norm": (mla.kv_lora_rank,),
        "kv_b": (mla.num_heads * (mla.nope_head_dim + mla.value_head_dim), mla.kv_lora_rank),
        "o": (hidden, mla.num_heads * mla.value_head_dim),
    }
