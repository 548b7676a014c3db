"""Who needs how much memory: weights, KV cache, activations, buffers of the exchange.

Every need is `fixed + per_token * B` bytes on each instance, with B the tokens of the whole batch,
so the largest batch that fits follows by division. Arrays broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from janus_moe.errors import ConfigError
from janus_moe.planner.latency.arrays import Array, Numbers
from janus_moe.planner.latency.models import ModelFacts
from janus_moe.planner.latency.oracle import Oracle
from janus_moe.planner.latency.precision import BYTES_PER_ACTIVATION

PARTIAL_BYTES = 4
BUFFERS = 2
"""Of each exchange direction: one is filled while the other is read."""


@dataclass(frozen=True, slots=True)
class MemoryRules:
    """usable: share of a device's memory; the rest is for the runtime, graphs, fragmentation."""

    usable: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.usable <= 1:
            raise ConfigError(f"the usable share of memory must be in (0, 1], got {self.usable}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """Bytes on one instance. weights: of attention or gates. experts: replicas in slots. kv,
    activations, buffers: of one token of the whole batch."""

    weights: Numbers
    experts: Numbers
    kv: Numbers
    activations: Numbers
    buffers: Numbers

    @property
    def fixed(self) -> Array:
        return np.asarray(np.asarray(self.weights, np.float64) + self.experts)

    @property
    def per_token(self) -> Array:
        return np.asarray(np.asarray(self.kv, np.float64) + self.activations + self.buffers)

    def most_tokens(self, usable_bytes: float) -> Array:
        """The largest batch that fits; 0 or less where the weights alone do not."""
        return np.asarray((usable_bytes - self.fixed) / self.per_token)

    def parts(self, batch: float) -> dict[str, float]:
        """Bytes by purpose, of numbers, for a batch."""
        return {
            "weights": float(self.weights),
            "experts": float(self.experts),
            "kv cache": batch * float(self.kv),
            "activations": batch * float(self.activations),
            "exchange buffers": batch * float(self.buffers),
        }


def attention_need(oracle: Oracle, num_attention: Numbers, context: float) -> MemoryNeed:
    """Of one attention instance, which has 1 / num_attention of the batch."""
    model, share = oracle.model, 1.0 / np.asarray(num_attention, np.float64)
    return MemoryNeed(
        weights=model.attention_side_bytes(),
        experts=0.0,
        kv=share * model.kv_bytes_per_sequence(context, oracle.kv_format),
        activations=share * _attention_row(model),
        buffers=share * BUFFERS * _exchange_row(model),
    )


def expert_need(oracle: Oracle, num_expert: Numbers, slots: Numbers) -> MemoryNeed:
    """Of one expert instance with `slots` experts per layer; it gets all tokens."""
    model = oracle.model
    return MemoryNeed(
        weights=model.router_bytes(),
        experts=np.asarray(slots, np.float64) * expert_bytes_all_layers(model),
        kv=0.0,
        activations=_expert_row(model) / np.asarray(num_expert, np.float64)
        + BYTES_PER_ACTIVATION[model.weight_dtype] * model.hidden_size,
        buffers=BUFFERS * _exchange_row(model),
    )


def monolithic_need(
    oracle: Oracle, num_devices: Numbers, slots: Numbers, context: float, tp: Numbers = 1
) -> MemoryNeed:
    """Of one device that has attention, or a share of it with the others of `tp`, and experts; rows
    leave and arrive in even shares. Devices that share attention have the same sequences."""
    model, share = oracle.model, 1.0 / np.asarray(num_devices, np.float64)
    kv = model.kv_bytes_per_sequence(context, oracle.kv_format) / model.attention.cache_shards(tp)
    return MemoryNeed(
        weights=model.attention_shard_bytes(tp) + model.router_bytes(),
        experts=np.asarray(slots, np.float64) * expert_bytes_all_layers(model),
        kv=share * tp * kv,
        activations=share * tp * _attention_row(model, tp) + share * _expert_row(model),
        buffers=share * BUFFERS * _exchange_row(model) * min(model.top_k, 8),
    )


def expert_bytes_all_layers(model: ModelFacts) -> float:
    """One slot: an expert of every MoE layer."""
    return model.expert_bytes() * model.num_moe_layers


def most_slots(oracle: Oracle, rules: MemoryRules) -> int:
    """Slots that fit on an expert device beside a batch of one token."""
    room = rules.usable * oracle.expert_side.device.memory_bytes
    one = expert_need(oracle, 1, 0)
    left = room - float(one.fixed) - float(one.per_token)
    return max(0, int(left // expert_bytes_all_layers(oracle.model)))


def _attention_row(model: ModelFacts, tp: Numbers = 1) -> Array:
    """Hidden states (residual, normalised, output), the widest product of a layer, logits; the last
    two are shared by `tp` devices."""
    width = max(float(rows) for _, rows, _ in model.attention.matrices(model.hidden_size))
    mlp = 2 * max(model.dense_width, model.shared_width)
    activation = BYTES_PER_ACTIVATION[model.weight_dtype]
    shared = np.asarray(activation * max(width, mlp) + 4.0 * model.vocab_size) / tp
    return np.asarray(activation * 3 * model.hidden_size + shared)


def _expert_row(model: ModelFacts) -> float:
    """Gate and up products and the result of a token's experts."""
    activation = BYTES_PER_ACTIVATION[model.weight_dtype]
    return float(model.top_k * (activation * 2 * model.expert_width + 4 * model.hidden_size))


def _exchange_row(model: ModelFacts) -> float:
    """A hidden state there and a partial sum back."""
    return float(model.hidden_size * (BYTES_PER_ACTIVATION[model.weight_dtype] + PARTIAL_BYTES))
