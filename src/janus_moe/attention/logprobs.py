"""Log-probabilities of chosen and rival tokens under the unmodified model.

This module knows nothing of sampling parameters or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from janus_moe.messages import TokenLogprob

ROWS_AT_ONCE = 256
"""Rows whose logits are held at a time: a long prompt times a large vocabulary would not fit."""


def token_logprobs(logits: Tensor, token_ids: Sequence[int], num_top: int) -> list[TokenLogprob]:
    """Log-probabilities of one token per row.

    logits: [rows, vocabulary] float32.
    token_ids: [rows] the tokens asked about.
    num_top: how many rivals to name per row; 0 means none.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    ids = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)
    chosen: list[float] = logprobs.gather(1, ids[:, None])[:, 0].tolist()
    if num_top == 0:
        return [TokenLogprob(i, value) for i, value in zip(token_ids, chosen, strict=True)]
    top_values, top_ids = logprobs.topk(min(num_top, logits.shape[-1]), dim=-1)
    tops = zip(top_ids.tolist(), top_values.tolist(), strict=True)
    return [
        TokenLogprob(token_id, value, tuple(zip(rival_ids, rival_values, strict=True)))
        for token_id, value, (rival_ids, rival_values) in zip(token_ids, chosen, tops, strict=True)
    ]


def prompt_logprobs(
    hidden: Tensor, next_ids: Sequence[int], num_top: int, logits_of: Callable[[Tensor], Tensor]
) -> list[TokenLogprob]:
    """Log-probability of each following prompt token.

    hidden: [tokens, hidden] final hidden states of consecutive prompt positions.
    next_ids: [tokens] the prompt token after each of them.
    num_top: how many rivals to name per token; 0 means none.
    logits_of: LM head, [rows, hidden] -> [rows, vocabulary] float32.
    """
    entries: list[TokenLogprob] = []
    for start in range(0, len(next_ids), ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, len(next_ids)))
        entries += token_logprobs(logits_of(hidden[rows]), next_ids[rows], num_top)
    return entries
