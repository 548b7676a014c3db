"""Which class computes which kind of attention: the only place that chooses.

A kind is described in `spec.attention` and computed by a class here; the generic code of the
attention side knows neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from janus_moe.model.gqa import GqaAttention
from janus_moe.model.kv_cache import StepInput
from janus_moe.model.loading import Loader
from janus_moe.model.mla import MlaAttention
from janus_moe.model.rotation import Rotations
from janus_moe.spec import AttentionKind, GqaSpec, MlaSpec, ModelSpec


class AttentionHalf(Protocol):
    """The attention half of one layer with its weights."""

    def __call__(
        self, hidden: Tensor, step: StepInput, cache: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """The residual stream after attention, and its normalised rows, which the MLP sees.

        hidden: [tokens, hidden], the residual stream.
        step: the tokens; where their rows go in the cache.
        cache: the layer's tensors, `AttentionKind.cache_shapes`; extended by the step's tokens.
        """


ATTENTION_CLASSES: Mapping[type[AttentionKind], Any] = {
    GqaSpec: GqaAttention,
    MlaSpec: MlaAttention,
}


def load_attention(
    loader: Loader, spec: ModelSpec, layer: int, rotations: Rotations
) -> AttentionHalf:
    """The attention half of a layer."""
    kind = spec.attention_of(layer)
    half: AttentionHalf = ATTENTION_CLASSES[type(kind)].load(
        loader, kind, spec.rms_norm_eps, layer, rotations
    )
    return half
