"""Seconds of the operations of a model by the laws of its devices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from janus_moe.planner.latency.arrays import Array, Numbers
from janus_moe.planner.latency.coefficients import OpLaw
from janus_moe.planner.latency.estimate import Confidence, weakest
from janus_moe.planner.latency.models import GqaFacts, ModelFacts
from janus_moe.planner.latency.pool_device import PoolDevice
from janus_moe.planner.latency.precision import BYTES_PER_ACTIVATION, BYTES_PER_WEIGHT, Format


class OperationTimes(Protocol):
    """Seconds of one instance's operations; see `Oracle` for the meanings of the arguments. tp:
    devices that share its heads and its vocabulary."""

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
    """By the laws of two devices. kv_format: of the cache."""

    model: ModelFacts
    attention_side: PoolDevice
    expert_side: PoolDevice
    kv_format: Format

    def attention_layer_s(self, tokens: Numbers, context: Numbers, tp: Numbers = 1) -> Array:
        seconds = np.zeros(())
        for count, rows, columns in self.model.attention.matrices(self.model.hidden_size, tp):
            seconds = seconds + self._product_s(tokens, count * rows, columns)
        return np.asarray(seconds + self._cache_s(tokens, context, tp))

    def dense_layer_s(self, tokens: Numbers) -> Array:
        return self._mlp_s(tokens, self.model.dense_width)

    def shared_expert_s(self, tokens: Numbers) -> Array:
        return self._mlp_s(tokens, self.model.shared_width)

    def lm_head_s(self, tokens: Numbers, tp: Numbers = 1) -> Array:
        rows = self.model.vocab_size / np.asarray(tp)
        return self._product_s(tokens, rows, self.model.hidden_size)

    def moe_layer_s(
        self, activated: Numbers, tokens: Numbers, rows: Numbers, slots: Numbers
    ) -> Array:
        model = self.model
        return self._experts_law.seconds(
            activated * model.expert_bytes(),
            2.0 * model.expert_weights * tokens,
            units=rows * (float(model.hidden_size) * model.top_k),
            wide=np.asarray(rows > slots),
        )

    @property
    def attention_confidence(self) -> Confidence:
        return weakest((self._gemm_law.confidence, self._cache_law.confidence))

    @property
    def product_confidence(self) -> Confidence:
        return self._gemm_law.confidence

    @property
    def experts_confidence(self) -> Confidence:
        return self._experts_law.confidence

    def _product_s(self, tokens: Numbers, rows: Numbers, columns: Numbers) -> Array:
        """A matrix of weights [rows, columns] times `tokens` columns."""
        n = np.asarray(tokens, np.float64)
        dtype = self.model.weight_dtype
        moved = BYTES_PER_ACTIVATION[dtype] * n * (rows + columns)
        return self._gemm_law.seconds(
            rows * columns * BYTES_PER_WEIGHT[dtype] + moved,
            2.0 * rows * columns * n,
            depth=columns,
        )

    def _mlp_s(self, tokens: Numbers, width: int) -> Array:
        if not width:
            return np.zeros_like(np.asarray(tokens, np.float64))
        hidden = self.model.hidden_size
        return self._product_s(tokens, 2 * width, hidden) + self._product_s(tokens, hidden, width)

    def _cache_s(self, tokens: Numbers, context: Numbers, tp: Numbers) -> Array:
        attention, layers = self.model.attention, self.model.num_layers
        if not (isinstance(attention, GqaFacts) and attention.window):
            return self._attend_s(tokens, context, tp)
        share = attention.num_windowed_layers / layers
        seen = np.minimum(context, attention.window)
        whole = (1 - share) * self._attend_s(tokens, context, tp)
        return whole + share * self._attend_s(tokens, seen, tp)

    def _attend_s(self, tokens: Numbers, context: Numbers, tp: Numbers) -> Array:
        attention = self.model.attention
        heads = attention.num_kv_heads if isinstance(attention, GqaFacts) else 1
        positions = np.asarray(tokens, np.float64) * context
        row = self.model.kv_bytes_per_token_layer(self.kv_format) / attention.cache_shards(tp)
        return self._cache_law.seconds(
            positions * row,
            positions * (attention.flops_per_position / np.asarray(tp)),
            units=tokens * (float(heads) / np.asarray(tp)),
        )

    @cached_property
    def _cache_law(self) -> OpLaw:
        is_gqa = isinstance(self.model.attention, GqaFacts)
        return self.attention_side.law("gqa" if is_gqa else "mla", self.kv_format)

    @cached_property
    def _gemm_law(self) -> OpLaw:
        return self.attention_side.law("gemm", self.model.weight_dtype)

    @cached_property
    def _experts_law(self) -> OpLaw:
        return self.expert_side.law("moe", self.model.expert_dtype)
