"""Which implementation of `paged_attention` runs: decided here and nowhere else."""

import torch

from janus_moe.kernels.paged_attention.batch import AttentionBatch
from janus_moe.kernels.paged_attention.chunk import attend_chunk_streaming
from janus_moe.kernels.paged_attention.padded import paged_attention_padded
from janus_moe.kernels.paged_attention.prefill import attend_chunk
from janus_moe.kernels.paged_attention.reference import paged_attention_reference
from janus_moe.kernels.paged_attention.streaming import attend_streaming

STREAMING_MAX_QUERIES = 8


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
    value_dim: int,
) -> torch.Tensor:
    """Causal attention of each sequence's new tokens over its cached keys and values.

    query: [tokens, heads, key_dim]
    key_cache: [blocks, block_size, kv_heads, key_dim], heads a multiple of kv_heads
    value_cache: [blocks, block_size, kv_heads, >= value_dim]; only the first value_dim components
        of a row are used, so a latent cache can be both caches (multi-head latent attention)
    scale: factor of the scores before the softmax

    Returns [tokens, heads, value_dim] in query's dtype; all arithmetic is float32. Decode (one
    token) and prefill chunks mix freely, and there may be no sequence at all. In float32 on a CPU a
    token's result depends neither on other sequences nor on how its own is cut into chunks.
    """
    if query.shape[0] == 0:
        return query.new_empty((*query.shape[:2], value_dim))
    if query.device.type == "cpu":
        return _attend_cpu(query, key_cache, value_cache, batch, scale, value_dim)
    if query.shape[0] == batch.context_lens.shape[0]:  # one token each
        return paged_attention_padded(query, key_cache, value_cache, batch, scale, value_dim)
    return paged_attention_reference(query, key_cache, value_cache, batch, scale, value_dim)


def streams(queries: int) -> bool:
    """Whether a sequence's new tokens are attended one by one rather than as a chunk."""
    return queries <= STREAMING_MAX_QUERIES


def _attend_cpu(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
    value_dim: int,
) -> torch.Tensor:
    """Chunks one by one, all other query tokens in one streaming call.

    In float32 both have the same bits; chunks of bfloat16 go through torch's SDPA.
    """
    attend = attend_chunk_streaming if query.dtype == torch.float32 else attend_chunk
    caches = (key_cache, value_cache)
    sequences = batch.context_lens.shape[0]
    if query.shape[0] == sequences:
        rows = (batch.block_tables, batch.context_lens)
        return attend_streaming(query, *caches, *rows, scale, value_dim).to(query.dtype)
    out = query.new_empty((*query.shape[:2], value_dim))
    starts, contexts = batch.query_starts.tolist(), batch.context_lens.tolist()
    single: list[tuple[int, int, int]] = []  # token, sequence, visible keys
    for sequence, context in enumerate(contexts):
        first, last = starts[sequence], starts[sequence + 1]
        if streams(last - first):
            single += [(t, sequence, context - last + t + 1) for t in range(first, last)]
            continue
        table = batch.block_tables[sequence]
        chunk = attend(query[first:last], *caches, table, context, scale, value_dim)
        out[first:last] = chunk
    if single:
        tokens, sequences_of, visible = torch.tensor(single).T
        rows = (batch.block_tables[sequences_of], visible.int())
        mixed = attend_streaming(query[tokens], *caches, *rows, scale, value_dim)
        out[tokens] = mixed.to(query.dtype)
    return out
