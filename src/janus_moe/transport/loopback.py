"""The exchange inside one process, for tensors of any device.

Expert instances that registered a function are run by whichever attention instance dispatches
last, one after the other in ascending order: with one attention instance there is no thread
switch at all. Attention instances (and experts without a function) each live in a thread. Nothing
here waits for a device: tensors are handed on by reference, copied only where a caller could
overwrite them too early.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from janus_moe.errors import ExchangeClosed, ExchangeError
from janus_moe.spec import PoolShape
from janus_moe.transport.base import ExpertPort, WaitRule
from janus_moe.transport.lockstep.control_block import ControlBlock, control_block_bytes
from janus_moe.transport.lockstep.ports import LockstepAttention, LockstepExpert, Wiring
from janus_moe.transport.lockstep.reply_metadata import ExchangeMetadata
from janus_moe.transport.lockstep.wakeup import ThreadWakeup

ServeOnce = Callable[[ExpertPort], None]


class LoopbackExchange:
    """An `Exchange` whose instances are all in this process."""

    def __init__(self, shape: PoolShape, epoch: int = 0) -> None:
        self.shape = shape
        self._words = memoryview(bytearray(control_block_bytes(shape))).cast("q")
        self._control_block = ControlBlock(shape, self._words)
        self._tensors = _Tensors(shape)
        self._served: dict[int, tuple[ServeOnce, LockstepExpert]] = {}
        self._starting = threading.Lock()
        self._started = 0
        self._failure: tuple[int, BaseException] | None = None
        self._attention_wakeups = [ThreadWakeup() for _ in range(shape.attention)]
        self._expert_wakeups = [ThreadWakeup() for _ in range(shape.expert)]
        self._wiring = Wiring(
            self._attention_wakeups, self._expert_wakeups, self._start, self._why_closed, epoch
        )

    def attention_port(self, index: int, rule: WaitRule) -> LockstepAttention:
        store = _AttentionTensors(self._tensors, index)
        control_block = ControlBlock(self.shape, self._words)
        return LockstepAttention(index, control_block, self._wiring, store, rule)

    def expert_port(self, index: int, rule: WaitRule) -> LockstepExpert:
        """The end of an expert instance that lives in a thread of its own."""
        store = _ExpertTensors(self._tensors, index)
        return LockstepExpert(
            index, ControlBlock(self.shape, self._words), self._wiring, store, rule
        )

    def serve(self, index: int, serve_once: ServeOnce) -> None:
        """Lets the last dispatching attention instance run expert instance `index`.

        serve_once: accepts from the port it is given, computes and replies, once.
        """
        self._served[index] = (serve_once, self.expert_port(index, WaitRule()))
        self._tensors.inline = len(self._served) == self.shape.expert

    def shutdown(self) -> None:
        self._control_block.close()
        for wakeup in (*self._attention_wakeups, *self._expert_wakeups):
            wakeup.notify()

    def _start(self, key: int) -> None:
        with self._starting:
            if self._started == key:
                return
            self._started = key
        self._tensors.gather()
        for index, wakeup in enumerate(self._expert_wakeups):
            if index not in self._served:
                wakeup.notify()
        for index in sorted(self._served):
            try:
                self._run(index, key)
            except BaseException as error:
                self._failure = (index, error)
                self.shutdown()
                if not isinstance(error, Exception):
                    raise
                return  # everybody learns it in combine, this instance too

    def _run(self, index: int, key: int) -> None:
        serve_once, port = self._served[index]
        for _ in range(100):  # again where `wake` made accept return None
            serve_once(port)
            if self._control_block.latest_reply(index) == key:
                return
        raise ExchangeError(f"expert {index} was called but did not reply")

    def _why_closed(self) -> ExchangeError:
        if self._failure is None:
            return ExchangeClosed("the exchange was shut down")
        index, cause = self._failure
        error = ExchangeError(f"expert {index} failed: {type(cause).__name__}: {cause}")
        error.__cause__ = cause
        return error


class _Tensors:
    """What is on its way.

    rows: [attention instances] each [tokens, hidden]; partials: [expert instances] each
    [total tokens, hidden] float32; unread: [expert instances] what their notes have on a device.
    inline: every expert runs before the last dispatch returns.
    """

    def __init__(self, shape: PoolShape) -> None:
        empty = torch.empty(0)
        self.rows = [empty] * shape.attention
        self.partials = [empty] * shape.expert
        self.on_device: list[Tensor | None] = [None] * shape.expert
        self.counts: tuple[int, ...] = ()
        self.batch = empty
        self.inline = False

    def gather(self) -> None:
        parts = [rows for rows, count in zip(self.rows, self.counts, strict=True) if count]
        self.batch = parts[0] if len(parts) == 1 else torch.cat(parts)


class _AttentionTensors:
    def __init__(self, tensors: _Tensors, index: int) -> None:
        self._tensors = tensors
        self._index = index
        self._rows = slice(0, 0)
        self._alone = False

    def check(self, num_tokens: int) -> None:
        """Any number fits."""

    def open_step(self, counts: tuple[int, ...]) -> None:
        self._tensors.counts = counts
        start = sum(counts[: self._index])
        self._rows = slice(start, start + counts[self._index])
        self._alone = self._tensors.inline and sum(map(bool, counts)) == 1

    def put(self, hidden: Tensor) -> None:
        # Alone, the experts are done with `hidden` when dispatch returns; otherwise its owner may
        # overwrite it before the last instance has arrived.
        self._tensors.rows[self._index] = hidden if self._alone else hidden.clone()

    def combined(self) -> Tensor:
        first, *others = self._tensors.partials
        if not others:
            return first[self._rows]
        total = first[self._rows] + others[0][self._rows]
        for partial in others[1:]:
            total += partial[self._rows]
        return total

    def replies(self, replies: ExchangeMetadata) -> ExchangeMetadata:
        on_device = self._tensors.on_device
        if all(tensor is None for tensor in on_device):
            return replies
        return tuple(
            replace(metadata, on_device=own)
            for metadata, own in zip(replies, on_device, strict=True)
        )


class _ExpertTensors:
    def __init__(self, tensors: _Tensors, index: int) -> None:
        self._tensors = tensors
        self._index = index

    def batch(self, counts: tuple[int, ...]) -> Tensor:
        return self._tensors.batch

    def put(self, partial: Tensor, on_device: Tensor | None) -> None:
        self._tensors.partials[self._index] = partial
        self._tensors.on_device[self._index] = on_device
