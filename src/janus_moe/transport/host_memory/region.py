"""The exchange among processes of one host, through shared memory without a name.

The launcher creates an anonymous file and one doorbell per instance; workers inherit the
descriptors (`subprocess.Popen(pass_fds=region.fds)`) and learn their numbers from a `ShmAddress`.
The kernel frees everything with the last process, however it ends. This module does not know who
launches whom.

    board | batch [attention instances * max_tokens, hidden] | partial sums of expert 0 | 1 | ...

One buffer of each kind is enough. Rows are written at their offset in the batch, which is thus
the concatenation already. Row block i of exchange x+1 is written after attention instance i has
combined x, so every expert has replied to x and no longer reads its batch; and where i was idle
in the step of x, after every participant of that step has announced the next one, so combined x.
An expert writes its sums of x+1 after all participants of x+1 have dispatched, each of which had
combined x or had seen all announcements that follow it; so nobody reads its sums of x any more.
"""

from __future__ import annotations

import mmap
import os
import tempfile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from janus_moe.errors import ConfigError, ExchangeClosed
from janus_moe.spec import DTYPE_BYTES, Dtype, PoolShape, Spec
from janus_moe.torch_dtypes import TORCH_DTYPES
from janus_moe.transport.base import WaitRule
from janus_moe.transport.lockstep.control_block import ControlBlock, control_block_bytes
from janus_moe.transport.lockstep.ports import LockstepAttention, LockstepExpert, Wiring
from janus_moe.transport.lockstep.reply_metadata import ExchangeMetadata
from janus_moe.transport.lockstep.wakeup import EventFdWakeup

_ALIGNMENT = 64


class ShmLayout(Spec, frozen=True):
    """Where everything is in the region; offsets and sizes in bytes.

    max_tokens: rows per attention instance and step. dtype: of the hidden states; sums are
    float32. The file is sparse: pages that no step has touched take no memory.
    """

    shape: PoolShape
    max_tokens: int
    hidden_size: int
    dtype: Dtype
    epoch: int = 0

    @property
    def max_total(self) -> int:
        return self.shape.attention * self.max_tokens

    @property
    def batch_offset(self) -> int:
        return _align(control_block_bytes(self.shape))

    def partial_offset(self, expert: int) -> int:
        batch = self.max_total * self.hidden_size * DTYPE_BYTES[self.dtype]
        partial = self.max_total * self.hidden_size * DTYPE_BYTES["float32"]
        return self.batch_offset + _align(batch) + expert * _align(partial)

    @property
    def total_bytes(self) -> int:
        return self.partial_offset(self.shape.expert)


class ShmAddress(Spec, frozen=True):
    """How an inheriting process finds the region and the bells, by descriptor number.

    wakeups: (read end, write end) of attention instances, then expert instances.
    """

    layout: ShmLayout
    region: int
    wakeups: tuple[tuple[int, int], ...]


class ShmRegion:
    """One process's hold on the exchange; an `Exchange`."""

    def __init__(self, layout: ShmLayout, region_fd: int, wakeups: list[EventFdWakeup]) -> None:
        size = os.fstat(region_fd).st_size
        if size != layout.total_bytes:
            raise ConfigError(
                f"the shared region has {size} bytes, its layout {layout.total_bytes}; "
                "launcher and worker must be of the same version"
            )
        self.layout = layout
        self._region_fd = region_fd
        self._wakeups = wakeups
        self._memory = memoryview(mmap.mmap(region_fd, layout.total_bytes))
        self._open = True
        shape = layout.shape
        self._wiring = Wiring(
            attention_wakeups=wakeups[: shape.attention],
            expert_wakeups=wakeups[shape.attention :],
            start_experts=self._notify_experts,
            why_closed=lambda: ExchangeClosed("the exchange was shut down"),
            epoch=layout.epoch,
        )

    @classmethod
    def create(cls, layout: ShmLayout) -> ShmRegion:
        """In the launcher. Nothing is inherited except through `pass_fds`."""
        fd = _anonymous_file()
        os.ftruncate(fd, layout.total_bytes)
        count = layout.shape.attention + layout.shape.expert
        return cls(layout, fd, [EventFdWakeup.create() for _ in range(count)])

    @classmethod
    def attach(cls, address: ShmAddress) -> ShmRegion:
        """In a worker that inherited the descriptors; it owns its copies of them from here on."""
        wakeups = [EventFdWakeup(read_fd, write_fd) for read_fd, write_fd in address.wakeups]
        return cls(address.layout, address.region, wakeups)

    @property
    def fds(self) -> tuple[int, ...]:
        """What a worker must inherit."""
        return (self._region_fd, *(fd for wakeup in self._wakeups for fd in wakeup.fds))

    @property
    def address(self) -> ShmAddress:
        wakeups = tuple((wakeup.read_fd, wakeup.write_fd) for wakeup in self._wakeups)
        return ShmAddress(layout=self.layout, region=self._region_fd, wakeups=wakeups)

    def attention_port(self, index: int, rule: WaitRule) -> LockstepAttention:
        store = _AttentionRows(self.layout, self._memory, index)
        return LockstepAttention(index, self._control_block(), self._wiring, store, rule)

    def expert_port(self, index: int, rule: WaitRule) -> LockstepExpert:
        store = _ExpertRows(self.layout, self._memory, index)
        return LockstepExpert(index, self._control_block(), self._wiring, store, rule)

    def shutdown(self) -> None:
        if not self._open:
            return
        self._control_block().close()
        for wakeup in self._wakeups:
            wakeup.notify()

    def close(self) -> None:
        """Gives this process's descriptors back; its ports must not be in use any more.

        The mapping, which holds a descriptor of its own, goes with the last port or tensor that
        looks into it.
        """
        if self._open:
            self._open = False
            self._memory = memoryview(b"")
            os.close(self._region_fd)
            for wakeup in self._wakeups:
                wakeup.close()

    def _control_block(self) -> ControlBlock:
        size = control_block_bytes(self.layout.shape)
        return ControlBlock(self.layout.shape, self._memory[:size].cast("q"))

    def _notify_experts(self, key: int) -> None:
        for wakeup in self._wiring.expert_wakeups:
            wakeup.notify()


class _Batch:
    """The batch in two guises: for torch, and as raw rows (numpy has no bfloat16)."""

    def __init__(self, layout: ShmLayout, memory: memoryview) -> None:
        shape = (layout.max_total, layout.hidden_size)
        count, offset = shape[0] * shape[1], layout.batch_offset
        self.dtype = TORCH_DTYPES[layout.dtype]
        self.tensor = torch.frombuffer(memory, dtype=self.dtype, count=count, offset=offset).view(
            shape
        )
        self.raw = np.frombuffer(memory, _raw(self.dtype), count, offset).reshape(shape)


class _AttentionRows:
    """An `AttentionStore` in the region; views are made once per step."""

    def __init__(self, layout: ShmLayout, memory: memoryview, index: int) -> None:
        self._index = index
        self._layout = layout
        self._batch = _Batch(layout, memory)
        experts = range(layout.shape.expert)
        self._all_partials = [_partial(layout, memory, expert) for expert in experts]
        self._sum = np.empty((layout.max_tokens, layout.hidden_size), np.float32)
        self._rows = self._batch.raw[:0]
        self._partials: list[NDArray[np.float32]] = []
        self._result = torch.empty(0)

    def check(self, num_tokens: int) -> None:
        if num_tokens > self._layout.max_tokens:
            raise ConfigError(
                f"attention {self._index}: a step of {num_tokens} tokens, but the exchange has "
                f"room for {self._layout.max_tokens} (--max-num-batched-tokens)"
            )

    def open_step(self, counts: tuple[int, ...]) -> None:
        start = sum(counts[: self._index])
        end = start + counts[self._index]
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
            total = self._result.numpy()
            np.add(self._partials[0], self._partials[1], out=total)
            for partial in self._partials[2:]:
                np.add(total, partial, out=total)
        return self._result

    def replies(self, replies: ExchangeMetadata) -> ExchangeMetadata:
        return replies


class _ExpertRows:
    """An `ExpertStore` in the region; views are kept while the number of rows stays the same."""

    def __init__(self, layout: ShmLayout, memory: memoryview, index: int) -> None:
        self._batch = _Batch(layout, memory).tensor
        self._all = _partial(layout, memory, index)
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
            raise ValueError("a note that lies on a device cannot leave its process")
        if partial.dtype != torch.float32:
            raise ValueError(f"reply of {partial.dtype}, partial sums are float32")
        np.copyto(self._partial, partial.numpy())


def _partial(layout: ShmLayout, memory: memoryview, expert: int) -> NDArray[np.float32]:
    shape = (layout.max_total, layout.hidden_size)
    offset = layout.partial_offset(expert)
    return np.frombuffer(memory, np.float32, shape[0] * shape[1], offset).reshape(shape)


def _raw(dtype: torch.dtype) -> type[np.float32] | type[np.int16]:
    return np.float32 if dtype == torch.float32 else np.int16


def _align(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("janus-exchange", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # has no name either, or loses it at once
        return os.dup(file.fileno())
