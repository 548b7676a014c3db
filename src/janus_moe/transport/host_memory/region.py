"""Where everything is in the region of the shared-memory exchange, and how rows get there.

    control block | batch [attention instances * max_tokens, hidden] | partial sums of expert 0 | ..

Rows are written at their offset in the batch, which is thus the concatenation already. One buffer
of each kind is enough. Let x be a layer pass and y the next one, be it of the same step or a later:

- The rows of attention instance i for y overwrite those for x. If i took part in x, it has
  combined x: every expert has replied, so none reads the batch of x any more. If i was idle in the
  step of x, all participants of that step have announced the next one by now, so have combined x.
- The sums of an expert for y overwrite those for x. It computes y once all participants of y have
  dispatched. Each of them has combined x, or has seen the announcements of all that did.

This module does not know how processes get hold of the region (`shared_memory`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from janus_moe.errors import ConfigError
from janus_moe.spec import DTYPE_BYTES, InstanceId
from janus_moe.transport.base import ExchangeLayout
from janus_moe.transport.lockstep.control_block import control_block_bytes
from janus_moe.transport.lockstep.reply_metadata import ExchangeMetadata

_ALIGNMENT = 64

Sums = NDArray[np.float32] | NDArray[np.float64]
"""[rows, hidden] partial sums."""


@dataclass(frozen=True)
class RegionLayout:
    """Offsets and sizes in the region, bytes; pages that no step has touched take no memory."""

    exchange: ExchangeLayout

    @property
    def max_total(self) -> int:
        """Rows of the largest batch."""
        return self.exchange.shape.attention * self.exchange.max_tokens

    @property
    def batch_offset(self) -> int:
        return _align(control_block_bytes(self.exchange.shape))

    def partial_offset(self, expert: int) -> int:
        elements = self.max_total * self.exchange.hidden_size
        batch = _align(elements * DTYPE_BYTES[self.exchange.dtype])
        return (
            self.batch_offset + batch + expert * _align(elements * self.exchange.sum_dtype.itemsize)
        )

    @property
    def total_bytes(self) -> int:
        return self.partial_offset(self.exchange.shape.expert)


class _Batch:
    """The batch in two guises: for torch, and as raw rows (numpy has no bfloat16)."""

    def __init__(self, layout: RegionLayout, memory: memoryview) -> None:
        shape = (layout.max_total, layout.exchange.hidden_size)
        count, offset = shape[0] * shape[1], layout.batch_offset
        self.dtype = layout.exchange.torch_dtype
        self.tensor = torch.frombuffer(memory, dtype=self.dtype, count=count, offset=offset).view(
            shape
        )
        self.raw = np.frombuffer(memory, _raw(self.dtype), count, offset).reshape(shape)


class AttentionRows:
    """An `AttentionStore` in the region; views are made once per step."""

    def __init__(self, layout: RegionLayout, memory: memoryview, member: InstanceId) -> None:
        exchange = layout.exchange
        self._member = member
        self._rank = exchange.membership.rank(member)
        self._max_tokens = exchange.max_tokens
        self._batch = _Batch(layout, memory)
        experts = range(exchange.shape.expert)
        self._all_partials = [_partial(layout, memory, expert) for expert in experts]
        shape = (exchange.max_tokens, exchange.hidden_size)
        self._sum = np.empty(shape, np.float32)
        self._total = (
            np.empty(shape, self._all_partials[0].dtype) if len(experts) > 2 else self._sum
        )
        self._rows = self._batch.raw[:0]
        self._partials: list[Sums] = []
        self._result = torch.empty(0)

    def check(self, num_tokens: int) -> None:
        if num_tokens > self._max_tokens:
            raise ConfigError(
                f"{self._member}: a step of {num_tokens} tokens, but the exchange has room for "
                f"{self._max_tokens} (--max-num-batched-tokens)"
            )

    def open_step(self, counts: tuple[int, ...]) -> None:
        start = sum(counts[: self._rank])
        end = start + counts[self._rank]
        self._rows = self._batch.raw[start:end]
        self._partials = [partial[start:end] for partial in self._all_partials]
        if len(self._partials) == 1:  # the sum is the reply itself, read where it lies
            self._result = torch.from_numpy(self._partials[0])
        else:
            self._result = torch.from_numpy(self._sum[: end - start])

    def put(self, hidden: Tensor) -> None:
        if hidden.dtype != self._batch.dtype:
            raise ValueError(f"dispatch of {hidden.dtype}, the exchange has {self._batch.dtype}")
        raw = hidden if hidden.dtype == torch.float32 else hidden.view(torch.int16)
        np.copyto(self._rows, raw.numpy())

    def combined(self) -> Tensor:
        if len(self._partials) > 1:
            first, *others, last = self._partials
            for partial in others:
                first = np.add(first, partial, out=self._total[: len(first)])
            np.add(first, last, out=self._result.numpy())  # rounds once
        return self._result

    def with_device_part(self, replies: ExchangeMetadata) -> ExchangeMetadata:
        return replies


class ExpertRows:
    """An `ExpertStore` in the region; views are kept while the number of rows stays the same."""

    def __init__(self, layout: RegionLayout, memory: memoryview, rank: int) -> None:
        self._batch = _Batch(layout, memory).tensor
        self._all = _partial(layout, memory, rank)
        self._hidden = self._batch[:0]
        self._partial = self._all[:0]

    def batch(self, counts: tuple[int, ...]) -> Tensor:
        total = sum(counts)
        if total != self._hidden.shape[0]:
            self._hidden = self._batch[:total]
            self._partial = self._all[:total]
        return self._hidden

    def put(self, partial: Tensor, on_device: Tensor | None) -> None:
        if on_device is not None:
            raise ValueError("metadata that lies on a device cannot leave its process")
        np.copyto(self._partial, partial.numpy())


def _partial(layout: RegionLayout, memory: memoryview, expert: int) -> Sums:
    shape = (layout.max_total, layout.exchange.hidden_size)
    offset = layout.partial_offset(expert)
    count = shape[0] * shape[1]
    if layout.exchange.sum_dtype == torch.float64:
        return np.frombuffer(memory, np.float64, count, offset).reshape(shape)
    return np.frombuffer(memory, np.float32, count, offset).reshape(shape)


def _raw(dtype: torch.dtype) -> type[np.float32] | type[np.int16]:
    return np.float32 if dtype == torch.float32 else np.int16


def _align(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
