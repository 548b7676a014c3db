"""The buffers that a step's plan is laid out in as tensors.

It knows nothing of requests, sampling or the expert pool.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from janus_moe.kernels.paged_attention import AttentionBatch
from janus_moe.model.attention_block import StepInput
from janus_moe.policy.batching import StepPlan


@dataclass(frozen=True, slots=True)
class StepLimits:
    """How large a step of one attention instance may be.

    max_num_seqs: sequences of a step.
    max_num_batched_tokens: tokens of a step.
    max_model_len: prompt and output of a sequence together, tokens.
    micro_batch_threshold: tokens of a step from which it is computed in two parts; 0 means never.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    micro_batch_threshold: int = 0


class StepBuffers:
    """Inputs of one step at a time, at the same addresses in every step.

    limits: how large a step may be.
    num_blocks: blocks of the cache, of which a sequence has no more.
    block_size: tokens of a cache block.
    device: where the tensors are.
    """

    def __init__(
        self, limits: StepLimits, num_blocks: int, block_size: int, device: torch.device
    ) -> None:
        max_num_seqs, max_num_tokens = limits.max_num_seqs, limits.max_num_batched_tokens
        max_seq_blocks = min(num_blocks, -(-limits.max_model_len // block_size))
        self._block_size = block_size
        self._token_ids = _Buffer(max_num_tokens, np.int64, device)
        self._positions = _Buffer(max_num_tokens, np.int64, device)
        self._slots = _Buffer(max_num_tokens, np.int64, device)
        self._query_starts = _Buffer(max_num_seqs + 1, np.int32, device)
        self._context_lens = _Buffer(max_num_seqs, np.int32, device)
        self._tables = _Buffer(max_num_seqs * max_seq_blocks, np.int32, device)

    def fill(self, plan: StepPlan) -> StepInput:
        """Concatenates the scheduled positions of all sequences, in the plan's order.

        The tensors are views of the buffers: valid until the next call.
        """
        scheduled = plan.scheduled
        num_seqs, num_tokens = len(scheduled), plan.num_tokens
        starts = np.array([entry.start for entry in scheduled], dtype=np.int32)
        counts = np.array([entry.num_tokens for entry in scheduled], dtype=np.int32)
        query_starts = self._query_starts.host(num_seqs + 1)
        query_starts[0] = 0
        np.cumsum(counts, out=query_starts[1:])
        np.add(starts, counts, out=self._context_lens.host(num_seqs))
        decodes, prefills = scheduled[: plan.num_decodes], scheduled[plan.num_decodes :]
        tokens = [sequence.token_ids[start] for sequence, start, _, _ in decodes]
        for entry in prefills:
            tokens += entry.token_ids
        self._token_ids.host(num_tokens)[:] = np.fromiter(tokens, np.int64, num_tokens)
        positions = self._positions.host(num_tokens)
        positions[:] = np.arange(num_tokens)
        positions += np.repeat(starts - query_starts[:-1], counts)
        self._slots.host(num_tokens)[:] = plan.slot_mapping(self._block_size)
        batch = AttentionBatch(
            query_starts=self._query_starts.tensor(num_seqs + 1),
            context_lens=self._context_lens.tensor(num_seqs),
            block_tables=self._block_tables(plan),
        )
        return StepInput(
            token_ids=self._token_ids.tensor(num_tokens),
            positions=self._positions.tensor(num_tokens),
            slot_mapping=self._slots.tensor(num_tokens),
            batch=batch,
        )

    def _block_tables(self, plan: StepPlan) -> Tensor:
        """[sequences, most blocks of one] int32, contiguous; other entries are 0."""
        blocks = [entry.sequence.blocks for entry in plan.scheduled]
        shape = len(blocks), max(map(len, blocks))
        tables = self._tables.host(math.prod(shape)).reshape(shape)
        tables.fill(0)
        for row, own in enumerate(blocks):
            tables[row, : len(own)] = own
        return self._tables.tensor(math.prod(shape)).view(shape)


class _Buffer:
    """A one-dimensional array on the host and its copy on a device, which are one on the CPU."""

    def __init__(self, size: int, dtype: DTypeLike, device: torch.device) -> None:
        self._array: NDArray[Any] = np.zeros(size, dtype)
        self._host = torch.from_numpy(self._array)
        self._device = self._host.to(device)

    def host(self, count: int) -> NDArray[Any]:
        """The first elements, to be written."""
        return self._array[:count]

    def tensor(self, count: int) -> Tensor:
        """The first elements on the device, as they were last written."""
        tensor = self._device[:count]
        if self._device is not self._host:
            tensor.copy_(self._host[:count])
        return tensor
