"""How long each operation of a model takes on given devices.

The methods ending in `_s` take numbers or arrays and give arrays of seconds: they are for searches.
Beside each stands one that takes numbers and gives an `Estimate`. All numbers of tokens are those
of one instance, except in a `StepLoad`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from janus_moe.errors import ConfigError
from janus_moe.planner.latency.arrays import Array, Numbers
from janus_moe.planner.latency.catalog import find_model
from janus_moe.planner.latency.coefficients import Coefficients
from janus_moe.planner.latency.devices import device_profile
from janus_moe.planner.latency.estimate import Confidence, Estimate, weakest
from janus_moe.planner.latency.links import (
    ExchangeCounts,
    Gating,
    LinkModel,
    NodeLayout,
    all_reduce_counts,
    all_to_all_counts,
    exchange_counts,
    share_reached,
)
from janus_moe.planner.latency.pool_device import Overheads, PoolDevice
from janus_moe.planner.latency.precision import with_precision
from janus_moe.planner.latency.profile import MeasuredTimes, Profile
from janus_moe.planner.latency.step import (
    LAYER_PARTS,
    LayerParts,
    StepEstimate,
    StepLoad,
    StepParts,
)
from janus_moe.planner.latency.times import LawTimes, OperationTimes
from janus_moe.spec import DTYPE_BYTES, ExchangePlanName, FormatName, ModelSpec


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """Latency of `model` with attention on one kind of device and experts on another.

    model: in the formats that it is computed in; `build` changes them.
    links: between devices.
    overheads: what no operation has.
    kv_format: of the KV cache.
    measured: tables that replace the laws; None means the laws.
    """

    model: ModelSpec
    attention_side: PoolDevice
    expert_side: PoolDevice
    links: LinkModel
    overheads: Overheads = field(default_factory=Overheads)
    kv_format: FormatName = "bfloat16"
    measured: MeasuredTimes | None = None

    @classmethod
    def build(
        cls,
        model: str | ModelSpec,
        device: str,
        expert_device: str | None = None,
        *,
        weights: FormatName | None = None,
        expert_weights: FormatName | None = None,
        kv_format: FormatName = "bfloat16",
        links: LinkModel | None = None,
        overheads: Overheads | None = None,
    ) -> Oracle:
        """From names; raises ConfigError for unknown ones. Formats default to the model's."""
        found = find_model(model) if isinstance(model, str) else model
        attention, expert = PoolDevice.of(device), PoolDevice.of(expert_device or device)
        return cls(
            model=with_precision(found, weights, expert_weights),
            attention_side=attention,
            expert_side=expert,
            links=links or _links(attention, expert),
            overheads=overheads or Overheads.of(attention.device, expert.device),
            kv_format=kv_format,
        )

    @classmethod
    def from_profile(
        cls,
        profile: Profile,
        num_attention: int,
        num_expert: int,
        transport: str = "shm",
    ) -> Oracle:
        """Of the machine and model that were measured, for a shape whose instances all share it.

        Raises ConfigError for a transport that was not measured.
        """
        if transport not in profile.exchanges or transport not in profile.hosts:
            raise ConfigError(
                f"the profile has no transport {transport!r}, only {', '.join(profile.exchanges)}"
            )
        device = device_profile(profile.device)
        side = PoolDevice(device, Coefficients(device=profile.device, source="profile", laws={}))
        slower = profile.hosts[transport].slower
        measured = MeasuredTimes.of(profile, num_attention, num_expert, slower)
        return cls(
            model=profile.model,
            attention_side=side,
            expert_side=side,
            links=LinkModel.of_one_host(profile.exchanges[transport], device),
            overheads=Overheads(
                step_s=profile.hosts[transport].step_s,
                token_s=profile.hosts[transport].token_s,
                confidence="interpolated",
            ),
            kv_format=profile.model.dtype,
            measured=measured,
        )

    def on_one_device(self) -> Oracle:
        """The same with experts on the attention device; itself where they already are."""
        if self.attention_side.device.name == self.expert_side.device.name:
            return self
        side = self.attention_side
        return replace(self, expert_side=side, links=_links(side, side))

    # One operation, arrays

    def attention_layer_s(self, tokens: Numbers, context: Numbers, tp: Numbers = 1) -> Array:
        """Projections and attention of one layer for `tokens` sequences of `context` positions, a
        mean over layers with different windows. tp: devices that share the heads; their sum is
        `all_reduce_s`."""
        return self._times.attention_layer_s(tokens, context, tp)

    def dense_layer_s(self, tokens: Numbers) -> Array:
        """The MLP of a layer without experts."""
        return self._times.dense_layer_s(tokens)

    def shared_expert_s(self, tokens: Numbers) -> Array:
        """The shared experts of one layer; 0 where there are none."""
        return self._times.shared_expert_s(tokens)

    def lm_head_s(self, tokens: Numbers, tp: Numbers = 1) -> Array:
        """Logits of `tokens` rows, on each of `tp` devices that share the vocabulary."""
        return self._times.lm_head_s(tokens, tp)

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
        arriving = tokens if rows is None else rows
        held = activated if slots is None else slots
        return self._times.moe_layer_s(activated, tokens, arriving, held)

    def all_reduce_s(self, tokens: Numbers, tp: Numbers) -> Array:
        """The sum of `tokens` rows over `tp` devices that share the heads of attention."""
        counts = all_reduce_counts(
            tp,
            self.links.gpus_per_node,
            tokens,
            self.model.hidden_size,
            activation_bytes=DTYPE_BYTES[self.model.dtype],
        )
        return self.links.seconds(counts)

    def exchange_s(self, counts: ExchangeCounts) -> Array:
        """One direction of one exchange."""
        return self.links.seconds(counts)

    def step_s(self, load: StepLoad) -> Array:
        """Seconds of whole steps: the time per output token."""
        return self._parts(load).tpot_s

    # Loads

    def pools_load(
        self,
        batch: Numbers,
        context: Numbers,
        num_attention: Numbers,
        num_expert: Numbers,
        activated: Numbers,
        *,
        plan: ExchangePlanName = "2pc-sharded",
        gating: Gating = "egate",
        busiest_tokens: Numbers | None = None,
        micro_batches: Numbers = 1,
        slots: Numbers | None = None,
        exchange_s: tuple[Numbers, Numbers] | None = None,
    ) -> StepLoad:
        """A step of two pools that fill nodes in order; meanings as in `StepLoad`.

        exchange_s: (dispatch, combine); None means those of `plan`.
        """
        confidence: Confidence = "roofline"
        if exchange_s is None:
            tokens = np.asarray(batch, np.float64) / micro_batches
            counts = self.counts(tokens, num_attention, num_expert, plan=plan, gating=gating)
            exchange_s = self.exchange_s(counts[0]), self.exchange_s(counts[1])
            confidence = self.links.confidence(*counts)
        return StepLoad(
            batch=batch,
            context=context,
            num_attention=num_attention,
            num_expert=num_expert,
            activated=activated,
            dispatch_s=exchange_s[0],
            combine_s=exchange_s[1],
            busiest_tokens=busiest_tokens,
            rows=None if gating == "egate" else self._reached(batch, micro_batches, num_expert),
            slots=slots,
            micro_batches=micro_batches,
            exchange_confidence=confidence,
        )

    def counts(
        self,
        tokens: Numbers,
        num_attention: Numbers,
        num_expert: Numbers,
        *,
        plan: ExchangePlanName = "2pc-sharded",
        gating: Gating = "egate",
    ) -> tuple[ExchangeCounts, ExchangeCounts]:
        """(dispatch, combine) of one exchange of `tokens`, of pools that fill nodes in order."""
        layout = NodeLayout(
            num_attention=num_attention,
            num_expert=num_expert,
            gpus_per_node=self.links.gpus_per_node,
        )
        return exchange_counts(
            layout,
            tokens,
            self.model.hidden_size,
            self.model.moe.router.top_k,
            plan=plan,
            gating=gating,
            activation_bytes=DTYPE_BYTES[self.model.dtype],
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
        attention_tp: Numbers = 1,
        slots: Numbers | None = None,
    ) -> StepLoad:
        """A step of devices that each hold a share of the experts, and attention or, with
        `attention_tp` devices, a share of it; an all-to-all is on both sides of the experts."""
        counts = all_to_all_counts(
            num_devices,
            self.links.gpus_per_node,
            np.asarray(batch, np.float64) / micro_batches,
            self.model.hidden_size,
            self.model.moe.router.top_k,
            activation_bytes=DTYPE_BYTES[self.model.dtype],
        )
        return StepLoad(
            batch=batch,
            context=context,
            num_attention=np.asarray(num_devices) / attention_tp,
            num_expert=num_devices,
            activated=activated,
            dispatch_s=self.exchange_s(counts),
            combine_s=self.exchange_s(counts),
            busiest_tokens=busiest_tokens,
            rows=self._reached(batch, micro_batches, num_devices),
            slots=slots,
            micro_batches=micro_batches,
            deployment="monolithic",
            exchange_confidence=self.links.confidence(counts),
            attention_tp=attention_tp,
        )

    # One operation, numbers

    def lm_head(self, tokens: float) -> Estimate:
        return Estimate(float(self.lm_head_s(tokens)), self._times.product_confidence)

    def moe_layer(
        self,
        activated: float,
        tokens: float,
        rows: float | None = None,
        slots: float | None = None,
    ) -> Estimate:
        seconds = self.moe_layer_s(activated, tokens, rows, slots)
        return Estimate(float(seconds), self._times.experts_confidence)

    def exchange(self, counts: ExchangeCounts) -> Estimate:
        return Estimate(float(self.exchange_s(counts)), self.links.confidence(counts))

    def step(self, load: StepLoad) -> StepEstimate:
        """A step of numbers, not arrays, with its parts."""
        values = {name: float(value) for name, value in self._parts(load).by_name().items()}
        sure: Mapping[str, Confidence] = {
            "attention": self._times.attention_confidence,
            "attention all-reduce": load.exchange_confidence,
            "shared expert": self._times.product_confidence,
            "dispatch": load.exchange_confidence,
            "experts": self._times.experts_confidence,
            "combine": load.exchange_confidence,
            "dense layers": weakest(
                (self._times.attention_confidence, self._times.product_confidence)
            ),
            "lm head": self._times.product_confidence,
            "host": self.overheads.confidence,
        }
        layer = {name: Estimate(values[f"layer {name}"], sure[name]) for name in LAYER_PARTS}
        whole = {name: Estimate(values[name], confidence) for name, confidence in sure.items()}
        used = [part.confidence for part in whole.values() if part.seconds > 0]
        return StepEstimate(
            tpot=Estimate(values["tpot"], weakest(used)),
            layer=layer,
            whole=whole,
            bound_s=values["bound"],
        )

    # Inside

    def _parts(self, load: StepLoad) -> StepParts:
        model, over = self.model, self.overheads
        m = np.asarray(load.micro_batches, np.float64)
        rows = np.asarray(load.batch, np.float64) / m  # of one micro-batch, all instances
        each: Any = rows / np.asarray(load.num_attention)
        if load.attention_tokens is not None:
            each = np.asarray(load.attention_tokens, np.float64) / m
        logits = each if load.logits is None else np.asarray(load.logits, np.float64) / m
        pairs: Any = load.busiest_tokens
        if pairs is None:
            pairs = rows * model.moe.router.top_k / load.num_expert
        arriving = rows if load.rows is None else load.rows
        slots = model.moe.num_experts / load.num_expert if load.slots is None else load.slots
        tp: Numbers = 1 if load.attention_tp is None else load.attention_tp
        host_s = over.attention_layer_s + over.attention_token_s * (each / tp)
        attention = self.attention_layer_s(each, load.context, tp) + host_s
        reduce: Numbers = 0.0
        if load.attention_tp is not None:
            reduce = self.all_reduce_s(each, tp)
            attention = attention + reduce
            each = each / tp  # what follows is of each device's share of the rows
        layer = LayerParts(
            attention=attention,
            shared=self.shared_expert_s(each),
            dispatch=np.asarray(load.dispatch_s, np.float64),
            experts=self.moe_layer_s(load.activated, pairs, arriving, slots) + over.expert_layer_s,
            combine=np.asarray(load.combine_s, np.float64),
            reduce=reduce,
        )
        dense = np.zeros(())
        if model.num_dense_layers:
            dense = model.num_dense_layers * (m * (attention + self.dense_layer_s(each)))
        return StepParts(
            layer=layer,
            num_layers=model.num_moe_layers,
            deployment=load.deployment,
            micro_batches=m,
            dense=dense,
            head=m * self.lm_head_s(logits, tp),
            host=over.step_s + over.token_s * np.asarray(load.batch, np.float64),
        )

    def _reached(self, batch: Numbers, micro_batches: Numbers, instances: Numbers) -> Array:
        """Rows of a micro-batch that arrive at one of the instances when each goes only where it
        is routed, uniformly."""
        rows = np.asarray(batch, np.float64) / micro_batches
        return np.asarray(rows * share_reached(instances, self.model.moe.router.top_k))

    @cached_property
    def _times(self) -> OperationTimes:
        laws = LawTimes(self.model, self.attention_side, self.expert_side, self.kv_format)
        return laws if self.measured is None else self.measured


def _links(attention: PoolDevice, expert: PoolDevice) -> LinkModel:
    same_device = attention.device.name == expert.device.name
    measured = attention.coefficients.intra if same_device else None
    return LinkModel.of(attention.device, expert.device, measured)
