"""What the attention of a prompt costs, as reading of a cache that takes as long.

A chunk of a prompt reads each key once for many queries, so its arithmetic counts where that of a
decoded token hides behind reading.
"""

from __future__ import annotations

import numpy as np

from janus_moe.planner.latency.arrays import Array, Numbers
from janus_moe.planner.latency.oracle import Oracle
from janus_moe.spec import WEIGHT_FORMATS


def pair_cost(oracle: Oracle, tp: Numbers = 1) -> Array:
    """KV positions whose reading takes as long as the arithmetic of a query and a key.

    A mean over layers, on each of `tp` devices that share the heads.
    """
    model, device = oracle.model, oracle.attention_side.device
    rate = device.flops_for(model.weight_format.name)
    number = WEIGHT_FORMATS[oracle.kv_format].bytes_per_weight / device.memory_bytes_per_s
    cost = np.zeros(())
    for kind, num_layers in model.attention_counts:
        law = oracle.attention_side.law(kind.cache_operation, "bfloat16")
        computed = kind.flops_per_position * max(law.s_per_flop, 1 / rate)
        read = kind.cache_row * number / np.asarray(kind.cache_shards(tp), np.float64)
        each = np.minimum(1.0, computed / np.asarray(tp) / read)
        cost = cost + num_layers / model.num_layers * each
    return np.asarray(cost)


def chunk_positions(cost: Numbers, chunk: Numbers, prompt: Numbers) -> Array:
    """KV positions whose reading takes as long as the attention of a chunk.

    It is a mean over the chunks of a prompt.

    cost: `pair_cost`.
    chunk: tokens of a chunk.
    prompt: tokens of the prompt.
    """
    length, whole = np.asarray(chunk, np.float64), np.asarray(prompt, np.float64)
    return np.asarray(np.maximum((whole + length) / 2, cost * length * whole / 2))
