"""Everything an attention instance computes: the whole model except the routed experts.

Knows nothing of the expert pool, of requests or of sampling. Call it under torch.inference_mode.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from janus_moe.errors import CheckpointError
from janus_moe.kernels.gqa_layer import GqaLayerWeights, gqa_layer
from janus_moe.kernels.linear import linear
from janus_moe.kernels.rms_norm import rms_norm
from janus_moe.model.checkpoint import Checkpoint, OnBytes, ignore_bytes
from janus_moe.model.gqa import load_gqa_layer
from janus_moe.model.kv_cache import KvCache, StepInput
from janus_moe.model.layers import SwigluMlp, rotation_table
from janus_moe.model.loading import Loader
from janus_moe.model.mla import MlaAttention
from janus_moe.spec import GqaSpec, ModelSpec

__all__ = ["AttentionModel", "KvCache", "StepInput"]


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """One layer's share; `dense` in layers without experts, `shared` where there is one."""

    attention: GqaLayerWeights | MlaAttention
    dense: SwigluMlp | None
    shared: SwigluMlp | None


@dataclass(frozen=True, slots=True)
class AttentionModel:
    """Weights of one attention instance.

    embedding, lm_head: [vocab, hidden], the same tensor when tied.
    rotation_table: [max_len, rotary_dim / 2] complex64.
    """

    spec: ModelSpec
    embedding: Tensor
    layers: tuple[AttentionLayer, ...]
    final_norm: Tensor
    lm_head: Tensor
    rotation_table: Tensor

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        checkpoint: Checkpoint,
        device: torch.device | str,
        on_bytes: OnBytes = ignore_bytes,
        max_len: int | None = None,
    ) -> AttentionModel:
        """on_bytes: called with the bytes of each tensor; `attention_bytes(spec)` in total.

        max_len: longest sequence served; the model's own limit when None.
        """
        device = torch.device(device)
        loader = Loader(spec, checkpoint, device, on_bytes)
        embedding = loader.tensor("embed")
        tied = spec.tie_embeddings
        if tied:
            _check_tied(loader, checkpoint, embedding)
        return cls(
            spec=spec,
            embedding=embedding,
            layers=tuple(_load_layer(loader, spec, layer) for layer in range(spec.num_layers)),
            final_norm=loader.tensor("final_norm"),
            lm_head=embedding if tied else loader.tensor("lm_head"),
            rotation_table=rotation_table(spec.rope, max_len or spec.max_position, device),
        )

    def embed(self, step: StepInput) -> Tensor:
        """[tokens, hidden]."""
        return self.embedding.index_select(0, step.token_ids)

    def attention(
        self, layer: int, hidden: Tensor, step: StepInput, cache: KvCache
    ) -> tuple[Tensor, Tensor]:
        """hidden plus the attention of `layer`, and its normalised rows, which the MLP sees, be it
        routed, shared or dense: [tokens, hidden] each. Extends the cache."""
        block = self.layers[layer].attention
        rotation = step.rotation(self.rotation_table)
        keys, values = cache.keys[layer], cache.values[layer]
        if isinstance(block, GqaLayerWeights):
            return gqa_layer(hidden, block, rotation, keys, values, step.slot_mapping, step.batch)
        return block(hidden, rotation, step, keys)

    def dense(self, layer: int, normed: Tensor) -> Tensor:
        """The MLP of a layer without experts, [tokens, hidden]."""
        mlp = self.layers[layer].dense
        assert mlp is not None, f"layer {layer} is a mixture of experts"
        return mlp(normed)

    def shared(self, layer: int, normed: Tensor) -> Tensor | None:
        """The shared expert of an MoE layer, [tokens, hidden]; None where there is none."""
        mlp = self.layers[layer].shared
        return None if mlp is None else mlp(normed)

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, vocab] float32 from hidden states [rows, hidden] after the last layer."""
        normed = rms_norm(hidden, self.final_norm, self.spec.rms_norm_eps)
        return linear(normed, self.lm_head).float()


def _load_layer(loader: Loader, spec: ModelSpec, layer: int) -> AttentionLayer:
    eps = spec.rms_norm_eps
    attention: GqaLayerWeights | MlaAttention
    if isinstance(spec.attention, GqaSpec):
        attention = load_gqa_layer(loader, spec.attention, spec.rope, eps, layer)
    else:
        attention = MlaAttention.load(loader, spec.attention, spec.rope, eps, layer)
    is_moe = spec.moe_layers[layer]
    has_shared = is_moe and spec.moe.shared_intermediate_size > 0
    return AttentionLayer(
        attention=attention,
        dense=None if is_moe else SwigluMlp.load(loader, "dense", layer),
        shared=SwigluMlp.load(loader, "shared", layer) if has_shared else None,
    )


def _check_tied(loader: Loader, checkpoint: Checkpoint, embedding: Tensor) -> None:
    """A tied checkpoint has no lm_head, or one that repeats the embedding."""
    name = loader.name("lm_head")
    if name not in checkpoint.entries:
        return
    lm_head = checkpoint.view(name).to(embedding)
    if lm_head.shape != embedding.shape or not torch.equal(lm_head, embedding):
        raise CheckpointError(
            f"{checkpoint.entries[name].file}: {name} differs from the embedding, but config.json "
            "says tie_word_embeddings=true; set it to false if they are meant to differ"
        )
