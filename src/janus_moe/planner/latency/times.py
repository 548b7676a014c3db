"""Seconds of the operations of a model by the laws of its devices.

This module knows no deployment: all numbers are those of one instance and one layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from janus_moe.planner.latency.arrays import Array, Numbers
from janus_moe.planner.latency.coefficients import OpLaw
from janus_moe.planner.latency.estimate import Confidence, weakest
from janus_moe.planner.latency.pool_device import PoolDevice
from janus_moe.planner.latency.sizes import expert_weights
from janus_moe.spec import (
    DTYPE_BYTES,
    WEIGHT_FORMATS,
    AttentionKind,
    CacheOperation,
    FormatName,
    ModelSpec,
)


class OperationTimes(Protocol):
    """Seconds of one instance's operations; `Oracle` says what the arguments mean.

    `tp` is the number of devices that share its heads and its vocabulary.
    """

    @property
    def attention_confidence(self) -> Confidence: ...

    @property
    def product_confidence(self) -> Confidence: ...

    @property
    def experts_confidence(self) -> Confidence: ...

    def attention_layer_s(self, tokens: Numbers, context: Numbers, tp: Numbers = 1) -> Array: ...

    def dense_layer_s(self, tokens: Numbers) -> Array: ...

    def shared_expert_s(self, tokens: Numbers) -> Array: ...

    def lm_head_s(self, tokens: Numbers, tp: Numbers = 1) -> Array: ...

    def moe_layer_s(
        self, activated: Numbers, tokens: Numbers, rows: Numbers, slots: Numbers
    ) -> Array: ...


@dataclass(frozen=True)
class LawTimes:
    """Seconds by the laws of two devices.

    model: what they compute.
    attention_side: the device of attention instances.
    expert_side: the device of expert instances.
    kv_format: of the cache.
    """

    model: ModelSpec
    attention_side: PoolDevice
    expert_side: PoolDevice
    kv_format: FormatName

    def attention_layer_s(self, tokens: Numbers, context: Numbers, tp: Numbers = 1) -> Array:
        """A mean over the layers, which may have different kinds of attention."""
        seconds: Numbers = 0.0
        for kind, num_layers in self.model.attention_counts:
            share = num_layers / self.model.num_layers
            seconds = seconds + share * self._attention_s(kind, tokens, context, tp)
        return np.asarray(seconds)

    def dense_layer_s(self, tokens: Numbers) -> Array:
        return self._mlp_s(tokens, self.model.dense_intermediate_size)

    def shared_expert_s(self, tokens: Numbers) -> Array:
        return self._mlp_s(tokens, self.model.moe.shared_intermediate_size)

    def lm_head_s(self, tokens: Numbers, tp: Numbers = 1) -> Array:
        rows = self.model.vocab_size / np.asarray(tp)
        return self._product_s(tokens, rows, self.model.hidden_size)

    def moe_layer_s(
        self, activated: Numbers, tokens: Numbers, rows: Numbers, slots: Numbers
    ) -> Array:
        model = self.model
        return self._experts_law.seconds(
            activated * model.expert_bytes,
            2.0 * expert_weights(model) * tokens,
            units=rows * (float(model.hidden_size) * model.moe.router.top_k),
            wide=np.asarray(rows > slots),
        )

    @property
    def attention_confidence(self) -> Confidence:
        laws = (self._gemm_law, *self._cache_laws.values())
        return weakest([law.confidence for law in laws])

    @property
    def product_confidence(self) -> Confidence:
        return self._gemm_law.confidence

    @property
    def experts_confidence(self) -> Confidence:
        return self._experts_law.confidence

    def _product_s(self, tokens: Numbers, rows: Numbers, columns: Numbers) -> Array:
        """A matrix of weights [rows, columns] times `tokens` columns."""
        n = np.asarray(tokens, np.float64)
        moved = DTYPE_BYTES[self.model.dtype] * n * (rows + columns)
        return self._gemm_law.seconds(
            rows * columns * self.model.weight_format.bytes_per_weight + moved,
            2.0 * rows * columns * n,
            depth=columns,
        )

    def _mlp_s(self, tokens: Numbers, width: int) -> Array:
        if not width:
            return np.zeros_like(np.asarray(tokens, np.float64))
        hidden = self.model.hidden_size
        return self._product_s(tokens, 2 * width, hidden) + self._product_s(tokens, hidden, width)

    def _attention_s(
        self, kind: AttentionKind, tokens: Numbers, context: Numbers, tp: Numbers
    ) -> Array:
        """Projections and attention of a layer of one kind."""
        seconds = np.zeros(())
        for count, rows, columns in kind.matrices(self.model.hidden_size, tp):
            seconds = seconds + self._product_s(tokens, count * rows, columns)
        positions = np.asarray(tokens, np.float64) * kind.visible(context)
        row = kind.cache_row * WEIGHT_FORMATS[self.kv_format].bytes_per_weight
        read = self._cache_laws[kind.cache_operation].seconds(
            positions * (row / kind.cache_shards(tp)),
            positions * (kind.flops_per_position / np.asarray(tp)),
            units=tokens * (float(kind.cache_heads) / np.asarray(tp)),
        )
        return np.asarray(seconds + read)

    @cached_property
    def _cache_laws(self) -> dict[CacheOperation, OpLaw]:
        operations = {kind.cache_operation for kind in self.model.attention}
        return {name: self.attention_side.law(name, self.kv_format) for name in operations}

    @cached_property
    def _gemm_law(self) -> OpLaw:
        return self.attention_side.law("gemm", self.model.weight_format.name)

    @cached_property
    def _experts_law(self) -> OpLaw:
        return self.expert_side.law("moe", self.model.expert_format.name)
