"""Both ends of the exchange over a shared control block, with a store for the tensors.

`loopback` and `host_memory` differ in where control block and tensors are, in the kind of wake-up,
and in what it means to start the experts. The order of things is in `steps` and `batches`.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from janus_moe.transport.base import Combined, ReplyMetadata, Ticket, Work, sum_dtype
from janus_moe.transport.lockstep.batches import BatchSequence
from janus_moe.transport.lockstep.control_block import step_and_layer
from janus_moe.transport.lockstep.reply_metadata import ExchangeMetadata, check_routing
from janus_moe.transport.lockstep.steps import StepSequence


class AttentionStore(Protocol):
    """Where one attention instance puts its rows and finds the replies."""

    def check(self, num_tokens: int) -> None:
        """Raises ConfigError when a step with so many rows does not fit."""
        ...

    def open_step(self, counts: tuple[int, ...]) -> None:
        """counts: [attention instances] rows of each in the step that begins."""
        ...

    def put(self, hidden: Tensor) -> None: ...

    def combined(self) -> Tensor: ...

    def with_device_part(self, replies: ExchangeMetadata) -> ExchangeMetadata:
        """The metadata of the control block, with what does not fit into it."""
        ...


class ExpertStore(Protocol):
    """Where one expert instance finds the batch and puts its partial sums."""

    def batch(self, counts: tuple[int, ...]) -> Tensor: ...

    def put(self, partial: Tensor, on_device: Tensor | None) -> None:
        """on_device: the part of the reply's metadata that lies on a device."""
        ...


class LockstepAttention:
    """An `AttentionPort` over shared memory."""

    def __init__(self, steps: StepSequence, store: AttentionStore) -> None:
        self._steps = steps
        self._store = store
        self._control_block = steps.participant.control_block
        self._experts = self._control_block.membership.expert
        self._start_experts = steps.participant.wiring.start_experts
        self.use_epoch = steps.use_epoch
        self.step_pending = steps.pending
        self.wait = steps.wait
        self.leave = steps.leave
        self.wake = steps.participant.wake
        self.close = steps.participant.close

    def begin_step(self, num_tokens: int) -> int:
        self._store.check(num_tokens)
        return self._steps.begin(num_tokens)

    def dispatch(self, layer: int, hidden: Tensor) -> Ticket:
        steps = self._steps
        key = steps.next_key(layer, hidden)
        counts = steps.counts or self._open_step(layer)
        self._store.put(hidden)
        ticket = steps.dispatched(key, layer)
        # Only the last one needs to start the experts. Each stores, fences, then looks, so at
        # least one of those that arrive together sees all; when two do, the second start is idle.
        if self._control_block.all_dispatched(key, counts):
            self._start_experts(key)
        return ticket

    def combine(self, ticket: Ticket) -> Combined:
        steps = self._steps
        key = steps.check_in_flight(ticket)
        steps.participant.wait_for(lambda: self._control_block.all_replied(key), steps.late_reply)
        steps.in_flight = False
        replies = self._store.with_device_part(self._control_block.replies())
        check_routing(ticket, replies, self._experts)
        return Combined(self._store.combined(), replies)

    def _open_step(self, layer: int) -> tuple[int, ...]:
        counts = self._steps.begin_layers(layer)
        self._store.open_step(counts)
        return counts


class LockstepExpert:
    """An `ExpertPort` over shared memory."""

    def __init__(self, batches: BatchSequence, store: ExpertStore) -> None:
        self._batches = batches
        self._store = store
        self._participant = batches.participant
        self._control_block = batches.participant.control_block
        self._num_expert_instances = self._control_block.membership.shape.expert
        self._ready: tuple[int, tuple[int, ...]] | None = None
        self.wake = batches.participant.wake
        self.close = batches.participant.close

    def accept(self) -> Work | None:
        self._participant.wait_for(self._woken_or_complete, self._batches.late_dispatch)
        if self._participant.woken:
            self._participant.woken = False
            return None
        if self._ready is None:
            raise self._batches.ended()
        key, counts = self._ready
        step, layer = step_and_layer(key)
        ticket = Ticket(self._control_block.epoch(step), step, layer)
        hidden = self._store.batch(counts)
        return Work(ticket, hidden, counts, sum_dtype(hidden.dtype, self._num_expert_instances))

    def reply(self, work: Work, partial: Tensor, metadata: ReplyMetadata) -> None:
        self._batches.check_reply(work, partial)
        self._store.put(partial, metadata.on_device)
        key = self._batches.replied(work, metadata)
        if self._control_block.all_replied(key):  # the last one notifies, as in dispatch
            wakeups = self._participant.wiring.attention_wakeups
            for wakeup, count in zip(wakeups, work.num_tokens, strict=True):
                if count:
                    wakeup.notify()

    def _woken_or_complete(self) -> bool:
        """Whether `accept` may return; a layer pass counts when all participants are there."""
        if self._participant.woken:
            return True
        key = self._control_block.latest_dispatched()
        if key <= self._batches.answered:
            self._ready = None
            return self._control_block.all_absent()
        # Who dispatched had seen all announcements of that step, so its counts are in place.
        counts = self._control_block.counts(step_and_layer(key)[0])
        self._ready = (key, counts)
        return self._control_block.all_dispatched(key, counts)
