"""Which implementation of `gqa_layer` runs: decided here and nowhere else."""

import torch

from janus_moe.kernels.gqa_layer.fused import gqa_layer_fused
from janus_moe.kernels.gqa_layer.reference import gqa_layer_reference
from janus_moe.kernels.gqa_layer.tensors import GqaTensors
from janus_moe.kernels.paged_attention import AttentionBatch

FUSED_MAX_TOKENS = 256  # beyond, the calls that it saves are nothing beside the work


def gqa_layer(
    hidden: torch.Tensor,
    weights: GqaTensors,
    rotation: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slot_mapping: torch.Tensor,
    batch: AttentionBatch,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention half of a layer; extends the paged cache by the tokens' keys and values.

    hidden: [tokens, hidden], the residual stream
    rotation: [tokens, 1, head_dim / 2] complex64, factors of adjacent pairs
    keys, values: [blocks, block_size, kv_heads, head_dim], of hidden's dtype
    slot_mapping: [tokens] int64, block * block_size + offset

    Returns the residual stream after attention and its normalised rows, what the MLP sees: both
    [tokens, hidden] in hidden's dtype.
    """
    tensors = (hidden, rotation, keys, values, weights.qkv, weights.o, batch.block_tables)
    fits = hidden.device.type == "cpu" and hidden.dtype == torch.float32
    decoding = 0 < hidden.shape[0] == batch.context_lens.shape[0]  # one token of each sequence
    if (
        fits
        and decoding
        and hidden.shape[0] <= FUSED_MAX_TOKENS
        and all(tensor.is_contiguous() for tensor in tensors)
    ):
        return gqa_layer_fused(hidden, weights, rotation, keys, values, slot_mapping, batch)
    return gqa_layer_reference(hidden, weights, rotation, keys, values, slot_mapping, batch)
