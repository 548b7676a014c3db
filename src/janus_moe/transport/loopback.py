"""The exchange inside one process, for tensors of any device.

Expert instances that registered a function are run by the attention instance that dispatches last,
one after the other in ascending order: with one attention instance there is no thread
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
from janus_moe.spec import Membership, PoolShape
from janus_moe.transport.base import ExpertPort, WaitRule, sum_dtype
from janus_moe.transport.lockstep.batches import BatchSequence
from janus_moe.transport.lockstep.control_block import ControlBlock, control_block_bytes
from janus_moe.transport.lockstep.participant import Wiring
from janus_moe.transport.lockstep.ports import LockstepAttention, LockstepExpert
from janus_moe.transport.lockstep.reply_metadata import ExchangeMetadata
from janus_moe.transport.lockstep.steps import StepSequence
from janus_moe.transport.lockstep.wakeup import ThreadWakeup

ServeOnce = Callable[[ExpertPort], None]


class LoopbackExchange:
    """An `Exchange` whose instances are all in this process."""

    def __init__(self, membership: Membership) -> None:
        self.membership = membership
        shape = membership.shape
        self._words = memoryview(bytearray(control_block_bytes(shape))).cast("q")
        self._control_block = ControlBlock(membership, self._words)
        self._tensors = _Tensors(shape)
        self._served: dict[int, tuple[ServeOnce, LockstepExpert]] = {}
        self._starting = threading.Lock()
        self._started = 0
        self._failure: tuple[int, BaseException] | None = None
        self._wiring = Wiring(
            attention_wakeups=[ThreadWakeup() for _ in range(shape.attention)],
            expert_wakeups=[ThreadWakeup() for _ in range(shape.expert)],
            start_experts=self._start,
            why_closed=self._why_closed,
            epoch=membership.placement_epoch,
        )

    def attention_port(self, rank: int, rule: WaitRule) -> LockstepAttention:
        control_block = ControlBlock(self.membership, self._words)
        member = self.membership.attention[rank]
        steps = StepSequence(member, control_block, self._wiring, rule)
        return LockstepAttention(steps, _AttentionTensors(self._tensors, rank))

    def expert_port(self, rank: int, rule: WaitRule) -> LockstepExpert:
        """The end of an expert instance that lives in a thread of its own."""
        control_block = ControlBlock(self.membership, self._words)
        batches = BatchSequence(self.membership.expert[rank], control_block, self._wiring, rule)
        return LockstepExpert(batches, _ExpertTensors(self._tensors, rank))

    def serve(self, rank: int, serve_once: ServeOnce) -> None:
        """Lets the last dispatching attention instance run an expert instance.

        serve_once: accepts from the port it is given, computes and replies, once.
        """
        self._served[rank] = (serve_once, self.expert_port(rank, WaitRule()))
        self._tensors.inline = len(self._served) == self.membership.shape.expert

    def shutdown(self) -> None:
        self._control_block.close()
        for wakeup in (*self._wiring.attention_wakeups, *self._wiring.expert_wakeups):
            wakeup.notify()

    def close(self) -> None:
        """Leaves nothing to give back but the tensors, and the functions of the experts."""
        self.shutdown()
        self._served = {}
        self._tensors.forget()

    def _start(self, key: int) -> None:
        with self._starting:
            if self._started == key:
                return
            self._started = key
        self._tensors.gather()
        for rank, wakeup in enumerate(self._wiring.expert_wakeups):
            if rank not in self._served:
                wakeup.notify()
        for rank in sorted(self._served):
            try:
                self._run(rank, key)
            except BaseException as error:
                self._failure = (rank, error)
                self.shutdown()
                if not isinstance(error, Exception):
                    raise
                return  # all attention instances learn it in combine, this one too

    def _run(self, rank: int, key: int) -> None:
        serve_once, port = self._served[rank]
        for _ in range(100):  # again where `wake` made accept return None
            serve_once(port)
            if self._control_block.latest_reply(rank) == key:
                return
        raise ExchangeError(f"{self.membership.expert[rank]} was called but did not reply")

    def _why_closed(self) -> ExchangeError:
        if self._failure is None:
            return ExchangeClosed("the exchange was shut down")
        rank, cause = self._failure
        name = self.membership.expert[rank]
        error = ExchangeError(f"{name} failed: {type(cause).__name__}: {cause}")
        error.__cause__ = cause
        return error


class _Tensors:
    """What is on its way.

    rows: [attention instances] each [tokens, hidden], what was dispatched.
    partials: [expert instances] each [total tokens, hidden] of `Work.sums`, what was replied.
    on_device: [expert instances] part of their metadata that lies on a device.
    counts: [attention instances] rows of each in the latest step.
    batch: [total tokens, hidden], all rows of the latest layer pass that was gathered.
    is_gathered: no rows came since then.
    inline: every expert runs before the last dispatch returns.
    uses_device: some metadata was on a device.
    """

    def __init__(self, shape: PoolShape) -> None:
        self.shape = shape
        self.counts: tuple[int, ...] = ()
        self.inline = False
        self._gathering = threading.Lock()
        self.uses_device = False
        self.forget()

    def forget(self) -> None:
        empty = torch.empty(0)
        self.rows = [empty] * self.shape.attention
        self.partials = [empty] * self.shape.expert
        self.on_device: list[Tensor | None] = [None] * self.shape.expert
        self.batch = empty
        self.is_gathered = True

    def put(self, rank: int, rows: Tensor) -> None:
        """Takes the rows of one attention instance for the next layer pass."""
        self.rows[rank] = rows
        self.is_gathered = False

    def gather(self) -> Tensor:
        """The batch of a layer pass that all have dispatched.

        An expert instance that happens to look may be here before the last one to dispatch.
        """
        with self._gathering:
            if not self.is_gathered:
                rows = zip(self.rows, self.counts, strict=True)
                parts = [one for one, count in rows if count]
                self.batch = parts[0] if len(parts) == 1 else torch.cat(parts)
                self.is_gathered = True
            return self.batch


class _AttentionTensors:
    """An `AttentionStore`."""

    def __init__(self, tensors: _Tensors, rank: int) -> None:
        self._tensors = tensors
        self._rank = rank
        self._rows = slice(0, 0)
        self._alone = False

    def check(self, num_tokens: int) -> None:
        """Any number fits."""

    def open_step(self, counts: tuple[int, ...]) -> None:
        self._tensors.counts = counts
        start = sum(counts[: self._rank])
        self._rows = slice(start, start + counts[self._rank])
        self._alone = self._tensors.inline and sum(map(bool, counts)) == 1

    def put(self, hidden: Tensor) -> None:
        # Alone, the experts are done with `hidden` when dispatch returns; otherwise its owner may
        # overwrite it before the last instance has arrived.
        self._tensors.put(self._rank, hidden if self._alone else hidden.clone())

    def combined(self) -> Tensor:
        first, *others = self._tensors.partials
        if not others:
            return first[self._rows]
        total = first[self._rows] + others[0][self._rows]
        for partial in others[1:]:
            total += partial[self._rows]
        return total.float()

    def with_device_part(self, replies: ExchangeMetadata) -> ExchangeMetadata:
        if not self._tensors.uses_device:
            return replies
        parts = zip(replies, self._tensors.on_device, strict=True)
        return tuple(replace(metadata, on_device=own) for metadata, own in parts)


class _ExpertTensors:
    """An `ExpertStore`."""

    def __init__(self, tensors: _Tensors, rank: int) -> None:
        self._tensors = tensors
        self._rank = rank

    def batch(self, counts: tuple[int, ...]) -> Tensor:
        return self._tensors.gather()

    def put(self, partial: Tensor, on_device: Tensor | None) -> None:
        sums = sum_dtype(self._tensors.batch.dtype, self._tensors.shape.expert)
        self._tensors.partials[self._rank] = partial.to(sums)
        self._tensors.on_device[self._rank] = on_device
        if on_device is not None:
            self._tensors.uses_device = True
