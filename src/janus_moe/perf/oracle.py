"""How long each operation of a model takes on given devices.

The methods ending in `_s` take numbers or arrays and give arrays of seconds: they are for searches.
Beside each stands one that takes numbers and gives an `Estimate`. All numbers of tokens are those
of one instance, except in a `StepLoad`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from janus_moe.perf.arrays import Array, Numbers
from janus_moe.perf.catalog import model_facts
from janus_moe.perf.coefficients import OpLaw
from janus_moe.perf.estimate import Confidence, Estimate, weakest
from janus_moe.perf.links import (
    ExchangeCounts,
    Gating,
    LinkModel,
    NodeLayout,
    Plan,
    all_to_all_counts,
    exchange_counts,
)
from janus_moe.perf.models import GqaFacts, ModelFacts, with_precision
from janus_moe.perf.precision import (
    BYTES_PER_ACTIVATION,
    BYTES_PER_WEIGHT,
    Format,
)
from janus_moe.perf.sides import Overheads, Side
from janus_moe.perf.step import (
    LayerParts,
    StepEstimate,
    StepLoad,
    dependency_bound,
    layer_seconds,
    shares_of_time,
)


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """Latency of `model` with attention on one kind of device and experts on another.

    The model's own `weight_dtype` and `expert_dtype` are the precision; `build` changes them.
    kv_format: of the KV cache.
    """

    model: ModelFacts
    attention_side: Side
    expert_side: Side
    links: LinkModel
    overheads: Overheads = field(default_factory=Overheads)
    kv_format: Format = "bfloat16"

    @classmethod
    def build(
        cls,
        model: str | ModelFacts,
        device: str,
        expert_device: str | None = None,
        *,
        weights: Format | None = None,
        expert_weights: Format | None = None,
        kv_format: Format = "bfloat16",
        links: LinkModel | None = None,
        overheads: Overheads | None = None,
    ) -> Oracle:
        """From names; raises ConfigError for unknown ones. Formats default to the model's."""
        found = model_facts(model) if isinstance(model, str) else model
        attention, expert = Side.of(device), Side.of(expert_device or device)
        return cls(
            model=with_precision(found, weights, expert_weights),
            attention_side=attention,
            expert_side=expert,
            links=links or _links(attention, expert),
            overheads=overheads or Overheads.of(attention.device, expert.device),
            kv_format=kv_format,
        )

    # One operation, arrays

    def attention_layer_s(self, tokens: Numbers, context: Numbers) -> Array:
        """Projections and attention of one layer for `tokens` sequences of `context` positions
        each, a mean over the layers where their windows differ."""
        seconds = np.zeros(())
        for count, rows, columns in self.model.attention.matrices(self.model.hidden_size):
            seconds = seconds + self._product_s(tokens, count * rows, columns)
        return np.asarray(seconds + self._cache_s(tokens, context))

    def dense_layer_s(self, tokens: Numbers) -> Array:
        """The MLP of a layer without experts."""
        return self._mlp_s(tokens, self.model.dense_width)

    def shared_expert_s(self, tokens: Numbers) -> Array:
        """The shared experts of one layer; 0 where there are none."""
        return self._mlp_s(tokens, self.model.shared_width)

    def lm_head_s(self, tokens: Numbers) -> Array:
        """Logits of `tokens` rows."""
        return self._product_s(tokens, self.model.vocab_size, self.model.hidden_size)

    def moe_layer_s(
        self,
        activated: Numbers,
        tokens: Numbers,
        rows: Numbers | None = None,
        slots: Numbers | None = None,
    ) -> Array:
        """Routed experts of one layer on one instance.

        activated: distinct experts there. tokens: (token, k) pairs there. rows: tokens that arrive,
        routed there or not; None: as many as pairs. slots: experts it holds; None: the activated.
        """
        model = self.model
        law = self.expert_side.law("moe", model.expert_dtype)
        arriving = tokens if rows is None else rows
        held = activated if slots is None else slots
        return law.seconds(
            activated * model.expert_bytes(),
            2.0 * model.expert_weights * tokens,
            units=arriving * (float(model.hidden_size) * model.top_k),
            wide=np.asarray(arriving > held),
        )

    def exchange_s(self, counts: ExchangeCounts) -> Array:
        """One direction of one exchange."""
        return self.links.seconds(counts)

    def step_s(self, load: StepLoad) -> Array:
        """Seconds of whole steps: the time per output token."""
        return self._step(load)["tpot"]

    # Loads

    def pools_load(
        self,
        batch: Numbers,
        context: Numbers,
        num_attention: Numbers,
        num_expert: Numbers,
        activated: Numbers,
        *,
        plan: Plan = "2pc-sharded",
        gating: Gating = "egate",
        busiest_tokens: Numbers | None = None,
        micro_batches: Numbers = 1,
    ) -> StepLoad:
        """A step of two pools that fill nodes in order; meanings as in `StepLoad`."""
        layout = NodeLayout(
            num_attention=num_attention,
            num_expert=num_expert,
            gpus_per_node=self.links.gpus_per_node,
        )
        dispatch, combine = exchange_counts(
            layout,
            np.asarray(batch, np.float64) / micro_batches,
            self.model.hidden_size,
            self.model.top_k,
            plan=plan,
            gating=gating,
            activation_bytes=BYTES_PER_ACTIVATION[self.model.weight_dtype],
        )
        return StepLoad(
            batch=batch,
            context=context,
            num_attention=num_attention,
            num_expert=num_expert,
            activated=activated,
            dispatch_s=self.exchange_s(dispatch),
            combine_s=self.exchange_s(combine),
            busiest_tokens=busiest_tokens,
            micro_batches=micro_batches,
            exchange_confidence=self.links.confidence(dispatch, combine),
        )

    def monolithic_load(
        self,
        batch: Numbers,
        context: Numbers,
        num_devices: Numbers,
        activated: Numbers,
        *,
        busiest_tokens: Numbers | None = None,
        micro_batches: Numbers = 1,
    ) -> StepLoad:
        """A step of devices that each hold all of attention and a share of the experts, with an
        all-to-all on both sides of the experts; meanings as in `StepLoad`."""
        counts = all_to_all_counts(
            num_devices,
            self.links.gpus_per_node,
            np.asarray(batch, np.float64) / micro_batches,
            self.model.hidden_size,
            self.model.top_k,
            activation_bytes=BYTES_PER_ACTIVATION[self.model.weight_dtype],
        )
        return StepLoad(
            batch=batch,
            context=context,
            num_attention=num_devices,
            num_expert=num_devices,
            activated=activated,
            dispatch_s=self.exchange_s(counts),
            combine_s=self.exchange_s(counts),
            busiest_tokens=busiest_tokens,
            micro_batches=micro_batches,
            deployment="monolithic",
            exchange_confidence=self.links.confidence(counts),
        )

    # One operation, numbers

    def attention_layer(self, tokens: float, context: float) -> Estimate:
        return Estimate(float(self.attention_layer_s(tokens, context)), self._attention_confidence)

    def dense_layer(self, tokens: float) -> Estimate:
        return Estimate(float(self.dense_layer_s(tokens)), self._gemm_confidence)

    def shared_expert(self, tokens: float) -> Estimate:
        return Estimate(float(self.shared_expert_s(tokens)), self._gemm_confidence)

    def lm_head(self, tokens: float) -> Estimate:
        return Estimate(float(self.lm_head_s(tokens)), self._gemm_confidence)

    def moe_layer(
        self,
        activated: float,
        tokens: float,
        rows: float | None = None,
        slots: float | None = None,
    ) -> Estimate:
        seconds = self.moe_layer_s(activated, tokens, rows, slots)
        return Estimate(float(seconds), self._moe_confidence)

    def exchange(self, counts: ExchangeCounts) -> Estimate:
        return Estimate(float(self.exchange_s(counts)), self.links.confidence(counts))

    def step(self, load: StepLoad) -> StepEstimate:
        """A step of numbers, not arrays, with its parts."""
        values = {name: float(value) for name, value in self._step(load).items()}
        sure: Mapping[str, Confidence] = {
            "attention": self._attention_confidence,
            "shared expert": self._gemm_confidence,
            "dispatch": load.exchange_confidence,
            "experts": self._moe_confidence,
            "combine": load.exchange_confidence,
            "dense layers": weakest((self._attention_confidence, self._gemm_confidence)),
            "lm head": self._gemm_confidence,
            "step": self.overheads.confidence,
        }
        layer = {
            name: Estimate(values[f"layer {name}"], sure[name])
            for name in ("attention", "shared expert", "dispatch", "experts", "combine")
        }
        whole = {name: Estimate(values[name], confidence) for name, confidence in sure.items()}
        used = [part.confidence for part in whole.values() if part.seconds > 0]
        return StepEstimate(
            tpot=Estimate(values["tpot"], weakest(used)),
            layer=layer,
            whole=whole,
            bound_s=values["bound"],
        )

    # Inside

    def _step(self, load: StepLoad) -> dict[str, Array]:
        model, over = self.model, self.overheads
        m = np.asarray(load.micro_batches, np.float64)
        rows = np.asarray(load.batch, np.float64) / m  # of one micro-batch, all instances
        each = rows / np.asarray(load.num_attention)
        pairs: Any = load.busiest_tokens
        if pairs is None:
            pairs = rows * model.top_k / load.num_expert
        arriving = rows if load.rows is None else load.rows
        slots = model.num_experts / load.num_expert if load.slots is None else load.slots
        attention = self.attention_layer_s(each, load.context) + over.attention_layer_s
        parts = LayerParts(
            attention=attention,
            shared=self.shared_expert_s(each),
            dispatch=np.asarray(load.dispatch_s, np.float64),
            experts=self.moe_layer_s(load.activated, pairs, arriving, slots) + over.expert_layer_s,
            combine=np.asarray(load.combine_s, np.float64),
        )
        layer = layer_seconds(parts, m, load.deployment)
        dense = model.num_dense_layers * (m * (attention + self.dense_layer_s(each)))
        head = m * self.lm_head_s(each)
        moe = model.num_moe_layers
        tpot = moe * layer + dense + head + over.step_s
        bound = moe * dependency_bound(parts, load.deployment) + (dense + head) / m + over.step_s
        return {
            **shares_of_time(parts, layer, moe, load.deployment),
            "dense layers": dense,
            "lm head": head,
            "step": np.asarray(over.step_s),
            "tpot": tpot,
            "bound": bound,
            "layer attention": np.asarray(parts.attention),
            "layer shared expert": np.asarray(parts.shared),
            "layer dispatch": np.asarray(parts.dispatch),
            "layer experts": np.asarray(parts.experts),
            "layer combine": np.asarray(parts.combine),
        }

    def _product_s(self, tokens: Numbers, rows: int, columns: int) -> Array:
        """A matrix of weights [rows, columns] times `tokens` columns."""
        n = np.asarray(tokens, np.float64)
        dtype = self.model.weight_dtype
        moved = BYTES_PER_ACTIVATION[dtype] * n * (rows + columns)
        return self._gemm_law.seconds(
            rows * columns * BYTES_PER_WEIGHT[dtype] + moved,
            2.0 * rows * columns * n,
            depth=float(columns),
        )

    def _mlp_s(self, tokens: Numbers, width: int) -> Array:
        if not width:
            return np.zeros_like(np.asarray(tokens, np.float64))
        hidden = self.model.hidden_size
        return self._product_s(tokens, 2 * width, hidden) + self._product_s(tokens, hidden, width)

    def _cache_s(self, tokens: Numbers, context: Numbers) -> Array:
        attention, layers = self.model.attention, self.model.num_layers
        if not (isinstance(attention, GqaFacts) and attention.window):
            return self._attend_s(tokens, context)
        share = attention.num_windowed_layers / layers
        seen = np.minimum(context, attention.window)
        return (1 - share) * self._attend_s(tokens, context) + share * self._attend_s(tokens, seen)

    def _attend_s(self, tokens: Numbers, context: Numbers) -> Array:
        attention = self.model.attention
        heads = attention.num_kv_heads if isinstance(attention, GqaFacts) else 1
        positions = np.asarray(tokens, np.float64) * context
        return self._cache_law.seconds(
            positions * self.model.kv_bytes_per_token_layer(self.kv_format),
            positions * attention.flops_per_position,
            units=tokens * float(heads),
        )

    @cached_property
    def _cache_law(self) -> OpLaw:
        is_gqa = isinstance(self.model.attention, GqaFacts)
        return self.attention_side.law("gqa" if is_gqa else "mla", self.kv_format)

    @cached_property
    def _gemm_law(self) -> OpLaw:
        return self.attention_side.law("gemm", self.model.weight_dtype)

    @cached_property
    def _gemm_confidence(self) -> Confidence:
        return self._gemm_law.confidence

    @cached_property
    def _attention_confidence(self) -> Confidence:
        return weakest((self._gemm_confidence, self._cache_law.confidence))

    @cached_property
    def _moe_confidence(self) -> Confidence:
        return self.expert_side.law("moe", self.model.expert_dtype).confidence


def _links(attention: Side, expert: Side) -> LinkModel:
    alike = attention.device.name == expert.device.name
    measured = attention.coefficients.intra if alike else None
    return LinkModel.of(attention.device, expert.device, measured)
