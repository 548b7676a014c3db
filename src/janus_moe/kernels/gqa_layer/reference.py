"""The obvious version, one operation after another."""

import torch

from janus_moe.kernels.gqa_layer.tensors import GqaTensors
from janus_moe.kernels.linear import linear
from janus_moe.kernels.paged_attention import AttentionBatch, paged_attention
from janus_moe.kernels.rms_norm import rms_norm
from janus_moe.kernels.rotate_and_cache import rotate_and_cache


def gqa_layer_reference(
    hidden: torch.Tensor,
    weights: GqaTensors,
    rotation: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slot_mapping: torch.Tensor,
    batch: AttentionBatch,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Contract of `gqa_layer`."""
    tokens, head_dim = hidden.shape[0], keys.shape[3]
    normed = rms_norm(hidden, weights.input_norm, weights.eps)
    qkv = linear(normed, weights.qkv, weights.qkv_bias).view(tokens, -1, head_dim)
    query = rotate_and_cache(
        qkv, weights.qk_norm, weights.eps, rotation, keys, values, slot_mapping
    )
    attended = paged_attention(query, keys, values, batch, weights.scale, head_dim)
    hidden = hidden + linear(attended.view(tokens, -1), weights.o, weights.o_bias)
    return hidden, rms_norm(hidden, weights.output_norm, weights.eps)
