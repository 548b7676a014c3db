"""What the attention of a prompt costs, as reading of a cache that takes as long.

A chunk of a prompt reads each key once for many queries, so its arithmetic counts where that of a
decoded token hides behind reading.
"""

from __future__ import annotations

import numpy as np

from janus_moe.planner.latency.arrays import Array, Numbers
from janus_moe.planner.latency.coefficients import OperationKind
from janus_moe.planner.latency.models import GqaFacts
from janus_moe.planner.latency.oracle import Oracle


def pair_cost(oracle: Oracle, tp: Numbers = 1) -> Array:
    """KV positions whose reading takes as long as the arithmetic of a query and a key, on each of
    `tp` devices that share the heads."""
    attention, device = oracle.model.attention, oracle.attention_side.device
    kind: OperationKind = "gqa" if isinstance(attention, GqaFacts) else "mla"
    law = oracle.attention_side.law(kind, "bfloat16")
    read = oracle.model.kv_bytes_per_token_layer(oracle.kv_format) / device.memory_bytes_per_s
    computed = attention.flops_per_position * max(
        law.s_per_flop, 1 / device.flops_for(oracle.model.weight_dtype)
    )
    shards = np.asarray(attention.cache_shards(tp), np.float64)
    return np.asarray(np.minimum(1.0, computed / np.asarray(tp) / (read / shards)))


def chunk_positions(cost: Numbers, chunk: Numbers, prompt: Numbers) -> Array:
    """KV positions whose reading takes as long as the attention of a chunk, a mean over the chunks
    of a prompt. cost: `pair_cost`. chunk, prompt: tokens."""
    length, whole = np.asarray(chunk, np.float64), np.asarray(prompt, np.float64)
    return np.asarray(np.maximum((whole + length) / 2, cost * length * whole / 2))
