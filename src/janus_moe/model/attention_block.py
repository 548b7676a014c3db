"""Everything an attention instance computes: the whole model except the routed experts.

Knows nothing of the expert pool, of requests or of sampling. Call it under torch.inference_mode.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from janus_moe.errors import CheckpointError
from janus_moe.kernels.linear import linear
from janus_moe.kernels.rms_norm import rms_norm
from janus_moe.model.attention_kinds import AttentionHalf, load_attention
from janus_moe.model.checkpoint import Checkpoint, OnBytes, ignore_bytes
from janus_moe.model.kv_cache import KvCache, StepInput
from janus_moe.model.loading import Loader
from janus_moe.model.mlp import SwigluMlp
from janus_moe.model.rotation import Rotations
from janus_moe.spec import ModelSpec

__all__ = ["AttentionModel", "KvCache", "StepInput"]


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """One layer's share of an attention instance.

    attention: its attention half.
    dense: the MLP; None means that the layer has routed experts.
    shared: the shared expert; None means that there is none.
    """

    attention: AttentionHalf
    dense: SwigluMlp | None
    shared: SwigluMlp | None


@dataclass(frozen=True, slots=True)
class AttentionModel:
    """Weights of one attention instance.

    spec: the model.
    embedding: [vocab, hidden].
    layers: [layers] their shares.
    final_norm: [hidden], before the LM head.
    lm_head: [vocab, hidden], the embedding's tensor when tied.
    """

    spec: ModelSpec
    embedding: Tensor
    layers: tuple[AttentionLayer, ...]
    final_norm: Tensor
    lm_head: Tensor

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        checkpoint: Checkpoint,
        device: torch.device | str,
        on_bytes: OnBytes = ignore_bytes,
        max_len: int | None = None,
    ) -> AttentionModel:
        """The weights of an attention instance.

        on_bytes: told the bytes of each tensor; `attention_bytes(spec)` in total.
        max_len: longest sequence served; None means the model's own limit.
        """
        device = torch.device(device)
        loader = Loader(spec, checkpoint, device, on_bytes)
        embedding = loader.tensor("embed")
        rotations = Rotations(max_len or spec.max_position, device)
        tied = spec.tie_embeddings
        if tied:
            _check_tied(loader, checkpoint, embedding)
        return cls(
            spec=spec,
            embedding=embedding,
            layers=tuple(
                _load_layer(loader, spec, layer, rotations) for layer in range(spec.num_layers)
            ),
            final_norm=loader.tensor("final_norm"),
            lm_head=embedding if tied else loader.tensor("lm_head"),
        )

    def embed(self, step: StepInput) -> Tensor:
        """[tokens, hidden]."""
        return self.embedding.index_select(0, step.token_ids)

    def attention(
        self, layer: int, hidden: Tensor, step: StepInput, cache: KvCache
    ) -> tuple[Tensor, Tensor]:
        """The attention half of a layer, which extends the cache.

        Returns the residual stream and its normalised rows, which the MLP sees, be it routed,
        shared or dense: [tokens, hidden] each.
        """
        return self.layers[layer].attention(hidden, step, cache.layers[layer])

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


def _load_layer(
    loader: Loader, spec: ModelSpec, layer: int, rotations: Rotations
) -> AttentionLayer:
    is_dense = spec.layers[layer].mlp == "dense"
    has_shared = not is_dense and spec.moe.shared_intermediate_size > 0
    return AttentionLayer(
        attention=load_attention(loader, spec, layer, rotations),
        dense=SwigluMlp.load(loader, "dense", layer) if is_dense else None,
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
