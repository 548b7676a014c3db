"""Tensors of one step from its plan. Knows nothing of requests, sampling or the expert pool."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from janus_moe.kernels.paged_attention import AttentionBatch
from janus_moe.model.attention_block import StepInput
from janus_moe.policy.batching import StepPlan


def build_step_input(plan: StepPlan, block_size: int, device: torch.device) -> StepInput:
    """Concatenates the scheduled positions of all sequences, in the plan's order."""
    scheduled = plan.scheduled
    starts = np.array([entry.start for entry in scheduled], dtype=np.int32)
    counts = np.array([entry.num_tokens for entry in scheduled], dtype=np.int32)
    query_starts = np.zeros(len(scheduled) + 1, dtype=np.int32)
    np.cumsum(counts, out=query_starts[1:])
    token_ids = np.fromiter(
        (token for entry in scheduled for token in entry.token_ids), np.int64, plan.num_tokens
    )
    within = np.arange(plan.num_tokens, dtype=np.int64) - np.repeat(query_starts[:-1], counts)
    positions = np.repeat(starts, counts) + within
    width = max(len(entry.sequence.blocks) for entry in scheduled)
    tables = np.zeros((len(scheduled), width), dtype=np.int32)
    for row, entry in enumerate(scheduled):
        blocks = entry.sequence.blocks
        tables[row, : len(blocks)] = blocks
    slots = plan.slot_mapping(block_size)
    return StepInput(
        token_ids=_to(token_ids, device),
        positions=_to(positions, device),
        slot_mapping=_to(slots, device),
        batch=AttentionBatch(
            query_starts=_to(query_starts, device),
            context_lens=_to(starts + counts, device),
            block_tables=_to(tables, device),
        ),
    )


def _to(array: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)
