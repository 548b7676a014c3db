"""Who needs how much memory: weights, KV cache, activations, buffers of the exchange.

Every need is `fixed + per_token * B` bytes on each instance, with B the tokens of the whole batch,
so the largest batch that fits follows by division. Arrays broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from janus_moe.errors import ConfigError
from janus_moe.planner.latency.arrays import Array, Ints, Numbers
from janus_moe.planner.latency.oracle import Oracle
from janus_moe.planner.latency.pool_device import PoolDevice
from janus_moe.planner.latency.sizes import (
    attention_side_bytes,
    kv_bytes_per_sequence,
    router_bytes,
)
from janus_moe.spec import DTYPE_BYTES, ModelSpec

BUFFERS = 2
"""Of each exchange direction: one is filled while the other is read."""


@dataclass(frozen=True, slots=True)
class MemoryRules:
    """How much of a device's memory may be planned for.

    usable: share; the rest is for the runtime, graphs, fragmentation.
    """

    usable: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.usable <= 1:
            raise ConfigError(f"the usable share of memory must be in (0, 1], got {self.usable}")

    def usable_bytes(self, side: PoolDevice) -> float:
        """Bytes of a device of this pool that may be planned for."""
        return self.usable * side.device.memory_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """Bytes on one instance.

    weights: of attention or gates.
    experts: replicas in slots.
    kv, activations, buffers: of one token of the whole batch.
    """

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
        weights=attention_side_bytes(model),
        experts=0.0,
        kv=share * kv_bytes_per_sequence(model, context, oracle.kv_format),
        activations=share * _attention_row(model),
        buffers=share * BUFFERS * _exchange_row(model),
    )


def expert_need(oracle: Oracle, num_expert: Numbers, slots: Numbers) -> MemoryNeed:
    """Of one expert instance with `slots` experts per layer; it gets all tokens."""
    model = oracle.model
    return MemoryNeed(
        weights=router_bytes(model),
        experts=np.asarray(slots, np.float64) * model.slot_bytes,
        kv=0.0,
        activations=_expert_row(model) / np.asarray(num_expert, np.float64)
        + DTYPE_BYTES[model.dtype] * model.hidden_size,
        buffers=BUFFERS * _exchange_row(model),
    )


def monolithic_need(
    oracle: Oracle, num_devices: Numbers, slots: Numbers, context: float, tp: Numbers = 1
) -> MemoryNeed:
    """Of one device that has attention, or a share of it with the others of `tp`, and experts; rows
    leave and arrive in even shares. Devices that share attention have the same sequences."""
    model, share = oracle.model, 1.0 / np.asarray(num_devices, np.float64)
    kv = kv_bytes_per_sequence(model, context, oracle.kv_format, tp)
    return MemoryNeed(
        weights=attention_side_bytes(model, tp) + router_bytes(model),
        experts=np.asarray(slots, np.float64) * model.slot_bytes,
        kv=share * tp * kv,
        activations=share * tp * _attention_row(model, tp) + share * _expert_row(model),
        buffers=share * BUFFERS * _exchange_row(model) * min(model.moe.router.top_k, 8),
    )


def most_slots(oracle: Oracle, rules: MemoryRules) -> int:
    """Slots per layer that fit on an expert device beside a batch of one token."""
    one = expert_need(oracle, 1, 0)
    left = rules.usable_bytes(oracle.expert_side) - float(one.fixed) - float(one.per_token)
    return max(0, int(left // oracle.model.slot_bytes))


def even_slots(num_experts: int, instances: Ints, redundancy: float, fit: int) -> Ints:
    """Slots per layer of each instance when all have the same number.

    num_experts: of a layer.
    instances: [pools] instances that share the experts.
    redundancy: slots per expert that are wanted, 1 or more.
    fit: slots that memory allows; more are given where the experts need them.
    """
    needed = -(-num_experts // instances)
    wanted = np.ceil(num_experts * redundancy / instances - 1e-9).astype(np.int64)
    return np.clip(wanted, needed, np.maximum(min(fit, num_experts), needed))


def _attention_row(model: ModelSpec, tp: Numbers = 1) -> Array:
    """Hidden states (residual, normalised, output), the widest product of a layer, logits; the last
    two are shared by `tp` devices."""
    matrices = [one for kind in model.attention for one in kind.matrices(model.hidden_size)]
    width = max(float(rows) for _, rows, _ in matrices)
    mlp = 2 * max(model.dense_intermediate_size, model.moe.shared_intermediate_size)
    activation = DTYPE_BYTES[model.dtype]
    shared = np.asarray(activation * max(width, mlp) + 4.0 * model.vocab_size) / tp
    return np.asarray(activation * 3 * model.hidden_size + shared)


def _expert_row(model: ModelSpec) -> float:
    """Gate and up products and the result of a token's experts."""
    activation = DTYPE_BYTES[model.dtype]
    of_expert = activation * 2 * model.moe.intermediate_size + 4 * model.hidden_size
    return float(model.moe.router.top_k * of_expert)


def _exchange_row(model: ModelSpec) -> float:
    """A hidden state there and a partial sum back, of float64 for rows of float32."""
    partial = 8 if model.dtype == "float32" else 4
    return float(model.hidden_size * (DTYPE_BYTES[model.dtype] + partial))
