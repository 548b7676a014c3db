"""Batched attention that gathers every query's whole block table: decode on devices.

Shapes depend only on tensor shapes and nothing is read back to the host, so a decode step with
static buffers can be captured in a graph. Memory grows with tokens x max_blocks.
"""

import torch

from janus_moe.kernels.paged_attention.batch import AttentionBatch


def paged_attention_padded(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
    value_dim: int,
) -> torch.Tensor:
    """Contract of `paged_attention`; right for any mix, meant for one query per sequence."""
    tokens, heads, key_dim = query.shape
    kv_heads = key_cache.shape[2]
    position = torch.arange(tokens, device=query.device)
    sequence = torch.searchsorted(batch.query_starts.long(), position, right=True) - 1
    to_go = batch.query_starts.long()[sequence + 1] - position - 1
    visible = batch.context_lens.long()[sequence] - to_go
    tables = batch.block_tables.long()[sequence].clamp(0, key_cache.shape[0] - 1)
    keys = key_cache[tables].flatten(1, 2).float()
    values = value_cache[tables].flatten(1, 2)[..., :value_dim].float()
    grouped = query.float().reshape(tokens, kv_heads, heads // kv_heads, key_dim)
    scores = torch.einsum("tgqd,tkgd->tgqk", grouped, keys) * scale
    hidden = torch.arange(keys.shape[1], device=query.device) >= visible[:, None]
    scores = scores.masked_fill(hidden[:, None, None, :], float("-inf"))
    mixed = torch.einsum("tgqk,tkgd->tgqd", scores.softmax(dim=-1), values)
    return mixed.flatten(1, 2).to(query.dtype)
