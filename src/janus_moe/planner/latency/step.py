"""From the parts of a layer to a whole decode step: what overlaps, and the bound nothing beats.

With M micro-batches a layer of the step takes

    max(M * attention, M * experts, attention + dispatch + experts + combine)

where each part is that of one micro-batch: the pools work in turns (ping-pong), and no overlap
takes a token through a layer faster than its dependencies. The shared expert runs on the attention
side while the exchange is under way. Smaller micro-batches read most expert weights again, because
the activated experts of a part are counted per micro-batch.

A monolithic deployment has one kind of device for all: a layer takes the sum of its parts, and a
second micro-batch hides the exchange of the first, max(M * (attention + shared + experts), sum).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from janus_moe.errors import ConfigError
from janus_moe.planner.latency.arrays import Array, Numbers
from janus_moe.planner.latency.estimate import Confidence, Estimate

DeploymentKind = Literal["pools", "monolithic"]
LAYER_PARTS = (
    *("attention", "attention all-reduce", "shared expert"),
    *("dispatch", "experts", "combine"),
)
"""Of an MoE layer, as they are named in estimates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoad:
    """What a decode step has to do; numbers, or arrays that broadcast.

    batch: tokens of all attention instances.
    context: mean positions attended to.
    num_attention, num_expert: instances.
    activated: distinct experts on the busiest expert instance per layer, of one micro-batch.
    busiest_tokens: (token, k) pairs there; None means an even share.
    rows: tokens that arrive at it; None means all.
    slots: experts it holds per layer; None means an even share.
    dispatch_s, combine_s: one way of the exchange of one micro-batch.
    micro_batches: M.
    deployment: what has the experts; a monolithic one has as many devices of either kind.
    attention_tokens: of the slowest attention instance, to which `context` then belongs; None means
        an even share.
    logits: rows of it that give a token; None means all.
    attention_tp: devices of an attention instance, which share its heads; only of monolithic
        deployments; None means 1.
    """

    batch: Numbers
    context: Numbers
    num_attention: Numbers
    num_expert: Numbers
    activated: Numbers
    dispatch_s: Numbers = 0.0
    combine_s: Numbers = 0.0
    busiest_tokens: Numbers | None = None
    rows: Numbers | None = None
    slots: Numbers | None = None
    micro_batches: Numbers = 1
    deployment: DeploymentKind = "pools"
    exchange_confidence: Confidence = "roofline"
    attention_tokens: Numbers | None = None
    logits: Numbers | None = None
    attention_tp: Numbers | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "num_attention", "num_expert", "micro_batches"):
            if not np.all(np.asarray(getattr(self, name)) > 0):
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("context", "activated"):
            if not np.all(np.asarray(getattr(self, name)) >= 0):
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParts:
    """Seconds of one MoE layer for one micro-batch; numbers or arrays.

    reduce: of `attention`, the sum over devices that share its heads.
    """

    attention: Numbers
    shared: Numbers
    dispatch: Numbers
    experts: Numbers
    combine: Numbers
    reduce: Numbers = 0.0


def layer_seconds(
    parts: LayerParts, micro_batches: Numbers, deployment: DeploymentKind = "pools"
) -> Array:
    """An MoE layer for all micro-batches together; see the module's docstring."""
    attention_side = parts.attention + parts.shared
    bound = dependency_bound(parts, deployment)
    if deployment == "monolithic":
        busiest: Numbers = attention_side + parts.experts
    else:
        busiest = np.maximum(attention_side, parts.experts)
    return np.asarray(np.maximum(micro_batches * busiest, bound), np.float64)


def dependency_bound(parts: LayerParts, deployment: DeploymentKind = "pools") -> Array:
    """What one micro-batch needs for a layer however much overlaps."""
    away = parts.dispatch + parts.experts + parts.combine
    if deployment == "monolithic":
        return np.asarray(parts.attention + parts.shared + away, np.float64)
    return np.asarray(parts.attention + np.maximum(parts.shared, away), np.float64)


def shares_of_time(
    parts: LayerParts, layer: Array, num_layers: int, deployment: DeploymentKind
) -> dict[str, Array]:
    """Each part's share of the layers' time: in order along the critical path, with the rest of a
    layer (what is busy with another micro-batch) given to the side that is busiest."""
    away = parts.dispatch + parts.experts + parts.combine
    shared = np.asarray(parts.shared, np.float64)
    if deployment == "pools":
        shared = np.maximum(shared - away, 0.0)
    waiting = layer - dependency_bound(parts, deployment)
    on_attention = parts.attention + parts.shared >= parts.experts
    return {
        "attention": num_layers
        * (parts.attention - parts.reduce + np.where(on_attention, waiting, 0.0)),
        "attention all-reduce": np.asarray(num_layers * parts.reduce),
        "shared expert": num_layers * shared,
        "dispatch": np.asarray(num_layers * parts.dispatch),
        "experts": num_layers * (parts.experts + np.where(on_attention, 0.0, waiting)),
        "combine": np.asarray(num_layers * parts.combine),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParts:
    """Seconds of a whole step; numbers or arrays.

    layer: one MoE layer and micro-batch of `num_layers` and `micro_batches`.
    dense, head, host: all that is beside these.
    """

    layer: LayerParts
    num_layers: int
    deployment: DeploymentKind
    micro_batches: Array
    dense: Array
    head: Array
    host: Array

    @property
    def tpot_s(self) -> Array:
        return self._with(layer_seconds(self.layer, self.micro_batches, self.deployment))

    def by_name(self) -> dict[str, Array]:
        """What overlaps is shared out as in `shares_of_time`; "layer ..." are of one layer and
        micro-batch; "bound" is what dependencies alone take."""
        own, number = self.layer, self.num_layers
        layer = layer_seconds(own, self.micro_batches, self.deployment)
        bound = number * dependency_bound(own, self.deployment)
        return {
            **shares_of_time(own, layer, number, self.deployment),
            "dense layers": self.dense,
            "lm head": self.head,
            "host": self.host,
            "tpot": self._with(layer),
            "bound": bound + (self.dense + self.head) / self.micro_batches + self.host,
            "layer attention": np.asarray(own.attention - own.reduce),
            "layer attention all-reduce": np.asarray(own.reduce),
            "layer shared expert": np.asarray(own.shared),
            "layer dispatch": np.asarray(own.dispatch),
            "layer experts": np.asarray(own.experts),
            "layer combine": np.asarray(own.combine),
        }

    def _with(self, layer: Array) -> Array:
        return np.asarray(self.num_layers * layer + self.dense + self.head + self.host)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEstimate:
    """A decode step.

    tpot: the whole step, which is the time per output token of each request.
    layer: name -> one MoE layer and micro-batch.
    whole: name -> all layers of the step; what overlaps counts only as far as it is seen, so the
        values sum to `tpot`.
    bound_s: what dependencies alone take.
    """

    tpot: Estimate
    layer: Mapping[str, Estimate]
    whole: Mapping[str, Estimate]
    bound_s: float

    def explain(self) -> tuple[tuple[str, float, float, Confidence], ...]:
        """(part, microseconds of the step, share of the step, confidence), largest first."""
        rows = [
            (name, 1e6 * part.seconds, part.seconds / self.tpot.seconds, part.confidence)
            for name, part in self.whole.items()
            if part.seconds > 0
        ]
        return tuple(sorted(rows, key=lambda row: -row[1]))
