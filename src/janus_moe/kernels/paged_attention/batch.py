"""The shape of one attention call."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class AttentionBatch:
    """Sequences of one step, packed one after another along the token axis.

    query_starts: [sequences + 1] int32, sequence s has query tokens starts[s]..starts[s + 1]
    context_lens: [sequences] int32, keys visible to a sequence's last query token (this step's
        included); its query token j of q sees keys 0 .. context - q + j. Every
        sequence has at least one query token.
    block_tables: [sequences, max_blocks] int32, cache block of each run of block_size keys
    """

    query_starts: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
