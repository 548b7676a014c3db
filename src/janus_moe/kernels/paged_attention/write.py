"""Store new key, value or latent rows into the paged cache."""

import torch


def write_kv(cache: torch.Tensor, rows: torch.Tensor, slot_mapping: torch.Tensor) -> None:
    """cache[block, offset] = row for every token.

    cache: [blocks, block_size, ...]; rows: [tokens, ...]; slot_mapping: [tokens] int64,
    block * block_size + offset.
    """
    cache.view(-1, *cache.shape[2:]).index_copy_(0, slot_mapping, rows)
