"""The obvious implementation, for any device: one sequence after another in float32."""

import torch

from janus_moe.kernels.paged_attention.batch import AttentionBatch


def paged_attention_reference(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
    value_dim: int,
) -> torch.Tensor:
    """Contract of `paged_attention`."""
    out = query.new_empty((*query.shape[:2], value_dim))
    starts = batch.query_starts.tolist()
    for sequence, context in enumerate(batch.context_lens.tolist()):
        rows = slice(starts[sequence], starts[sequence + 1])
        table = batch.block_tables[sequence]
        keys = sequence_rows(key_cache, table, context).float()
        values = sequence_rows(value_cache, table, context)[..., :value_dim].float()
        out[rows] = _attend(query[rows].float(), keys, values, scale).to(query.dtype)
    return out


def sequence_rows(cache: torch.Tensor, table: torch.Tensor, context: int) -> torch.Tensor:
    """Cached rows of one sequence: [context, kv_heads, dim] from [blocks, block_size, ...]."""
    blocks = -(-context // cache.shape[1])
    return cache[table[:blocks].long()].flatten(0, 1)[:context]


def causal_mask(queries: int, context: int, device: torch.device) -> torch.Tensor:
    """[queries, context] bool: query j of the last `queries` positions sees keys up to its own."""
    ones = torch.ones(queries, context, dtype=torch.bool, device=device)
    return ones.tril(context - queries)


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> torch.Tensor:
    """[queries, heads, key_dim] over [context, kv_heads, ...] -> [queries, heads, value_dim]."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (rows.repeat_interleave(group, dim=1) for rows in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", query, keys) * scale
    visible = causal_mask(query.shape[0], keys.shape[0], query.device)
    probabilities = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", probabilities, values)
