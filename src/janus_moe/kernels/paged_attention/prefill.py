"""CPU attention of one sequence's prefill chunk: gather its keys and values, then torch SDPA."""

import torch
import torch.nn.functional as F

from janus_moe.kernels.paged_attention.reference import causal_mask, sequence_rows


def attend_chunk(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    table: torch.Tensor,
    context: int,
    scale: float,
    value_dim: int,
) -> torch.Tensor:
    """[queries, heads, key_dim] -> [queries, heads, value_dim] for one sequence, in float32.

    The chunk's last query sees all `context` keys. Values keep their full width through SDPA when
    that equals the key width, because torch's fused kernel wants equal widths.
    """
    queries = query.shape[0]
    keys = sequence_rows(key_cache, table, context).float()
    values = sequence_rows(value_cache, table, context)
    if values.shape[-1] != keys.shape[-1]:
        values = values[..., :value_dim]
    whole = queries == context
    mixed = F.scaled_dot_product_attention(
        query.float().transpose(0, 1)[None],
        keys.transpose(0, 1)[None],
        values.float().transpose(0, 1)[None],
        attn_mask=None if whole else causal_mask(queries, context, query.device),
        is_causal=whole,
        scale=scale,
        enable_gqa=True,
    )
    return mixed[0].transpose(0, 1)[..., :value_dim].to(query.dtype)
