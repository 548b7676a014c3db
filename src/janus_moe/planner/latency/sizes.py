"""Weights and cache of a model in numbers and bytes, as far as time and memory plans go.

Matrices are counted, vectors (norms, biases) are not: they are below 0.1 % of any model here.
`tp` is the number of devices that share the heads and the vocabulary of an attention instance.
"""

from __future__ import annotations

import numpy as np

from janus_moe.planner.latency.arrays import Array, Numbers
from janus_moe.spec import WEIGHT_FORMATS, FormatName, ModelSpec


def expert_weights(model: ModelSpec) -> int:
    """Weights of one routed expert of one layer."""
    return 3 * model.hidden_size * model.moe.intermediate_size


def routed_weights(model: ModelSpec) -> int:
    """One copy of every routed expert."""
    return model.num_moe_layers * model.moe.num_experts * expert_weights(model)


def router_weights(model: ModelSpec) -> int:
    """Gates of all layers, which every expert instance holds."""
    return model.num_moe_layers * model.moe.num_experts * model.hidden_size


def attention_side_weights(model: ModelSpec, tp: Numbers = 1) -> Array:
    """All that each device of an attention instance holds.

    That is attention, dense and shared MLPs, embeddings.
    """
    hidden = model.hidden_size
    attention: Numbers = 0
    for kind, num_layers in model.attention_counts:
        matrices = kind.matrices(hidden, tp)
        attention = attention + num_layers * sum(
            n * rows * columns for n, rows, columns in matrices
        )
    embeddings = model.vocab_size * hidden * (1 if model.tie_embeddings else 2)
    mlps = (
        model.num_dense_layers * model.dense_intermediate_size
        + model.num_moe_layers * model.moe.shared_intermediate_size
    )
    return np.asarray(attention + 3 * hidden * mlps + embeddings / np.asarray(tp), np.float64)


def attention_side_bytes(model: ModelSpec, tp: Numbers = 1) -> Array:
    """Weights on each device of an attention instance."""
    return attention_side_weights(model, tp) * model.weight_format.bytes_per_weight


def router_bytes(model: ModelSpec) -> float:
    """Gates stay in bfloat16 or wider; 2 bytes are counted."""
    return 2.0 * router_weights(model)


def kv_bytes_per_token(model: ModelSpec, kv_format: FormatName, tp: Numbers = 1) -> Array:
    """Cache rows of one token in all layers, on each device of an attention instance."""
    rows: Numbers = 0.0
    for kind, num_layers in model.attention_counts:
        rows = rows + num_layers * kind.cache_row / kind.cache_shards(tp)
    return np.asarray(rows * WEIGHT_FORMATS[kv_format].bytes_per_weight, np.float64)


def kv_bytes_per_sequence(
    model: ModelSpec, context: float, kv_format: FormatName, tp: Numbers = 1
) -> Array:
    """Cache of a sequence on each device of an attention instance.

    context: tokens of the sequence; layers with windows keep no more than these.
    """
    rows: Numbers = 0.0
    for kind, num_layers in model.attention_counts:
        rows = rows + num_layers * kind.cached(context) / kind.cache_shards(tp)
    return np.asarray(rows * WEIGHT_FORMATS[kv_format].bytes_per_weight, np.float64)
