"""Both ends of the lockstep protocol, over a board, doorbells and a store for the tensors.

Backends differ in where the board and the tensors are, in the kind of bell, and in what it means
to start the experts; the protocol is here, once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from janus_moe.errors import ExchangeClosed, ExchangeError, ExchangeTimeout
from janus_moe.spec import InstanceId
from janus_moe.transport.base import Combined, ReplyMetadata, Ticket, WaitRule, Work
from janus_moe.transport.lockstep.control_block import (
    MAX_LAYERS,
    ControlBlock,
    exchange_key,
    step_and_layer,
)
from janus_moe.transport.lockstep.reply_metadata import ExchangeMetadata, check_routing
from janus_moe.transport.lockstep.wakeup import Wakeup


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

    def replies(self, replies: ExchangeMetadata) -> ExchangeMetadata:
        """The notes of the board, with what does not fit on it."""
        ...


class ExpertStore(Protocol):
    """Where one expert instance finds the batch and puts its partial sums."""

    def batch(self, counts: tuple[int, ...]) -> Tensor: ...

    def put(self, partial: Tensor, on_device: Tensor | None) -> None:
        """on_device: what the note has on a device."""
        ...


@dataclass(frozen=True, slots=True)
class Wiring:
    """What a port shares with the others.

    start_experts: makes the experts look at the exchange with this key.
    why_closed: the error that ends all waits once the board is closed.
    epoch: of the first steps.
    """

    attention_wakeups: Sequence[Wakeup]
    expert_wakeups: Sequence[Wakeup]
    start_experts: Callable[[int], None]
    why_closed: Callable[[], ExchangeError]
    epoch: int


class Port:
    """What both ends have in common: waiting, waking and closing."""

    def __init__(
        self,
        instance: InstanceId,
        control_block: ControlBlock,
        wakeup: Wakeup,
        wiring: Wiring,
        rule: WaitRule,
    ) -> None:
        self._instance = instance
        self._index = instance.number
        self._control_block = control_block
        self._wakeup = wakeup
        self._wiring = wiring
        self._rule = rule
        self._woken = False
        self._left = False
        control_block.sign_in(instance, os.getpid())

    def wake(self) -> None:
        self._woken = True
        self._wakeup.notify()

    def close(self) -> None:
        self._left = True
        self._wakeup.notify()

    def _check_open(self) -> None:
        if self._left:
            raise ExchangeClosed(f"{self._instance}: its end of the exchange was closed")
        if self._control_block.closed:
            raise self._wiring.why_closed()

    def _spin(self, ready: Callable[[], bool]) -> bool:
        if self._rule.spin_us <= 0:
            return False
        end = time.perf_counter() + self._rule.spin_us * 1e-6
        while time.perf_counter() < end:
            if ready():
                return True
        return False

    def _wait_for(
        self, ready: Callable[[], bool], late: Callable[[float], ExchangeTimeout | None]
    ) -> None:
        """Blocks until `ready`.

        After the deadline without any progress of the exchange it raises `late(seconds waited)`,
        or goes on waiting where that is None: nobody is late when nobody has begun.
        """
        self._check_open()
        if ready() or self._spin(ready):
            return
        timeout_s = self._rule.timeout_s
        seen, since = self._control_block.progress(), time.monotonic()
        while True:
            self._wakeup.wait(timeout_s / 4)  # so that the deadline is met within a quarter
            self._check_open()
            if ready():
                return
            progress, now = self._control_block.progress(), time.monotonic()
            if progress != seen:
                seen, since = progress, now
            elif now - since >= timeout_s:
                error = late(now - since)
                if error is not None:
                    raise error


class AttentionSteps(Port):
    """The steps of an attention instance: announcing them, their epochs, the order of layers.

    How rows travel is left to subclasses. check: raises ConfigError when a step with so many rows
    does not fit.
    """

    def __init__(
        self,
        index: int,
        control_block: ControlBlock,
        wiring: Wiring,
        check: Callable[[int], None],
        rule: WaitRule,
    ) -> None:
        instance = InstanceId(pool="attention", number=index)
        super().__init__(instance, control_block, wiring.attention_wakeups[index], wiring, rule)
        self._check = check
        self._peers = [wakeup for i, wakeup in enumerate(wiring.attention_wakeups) if i != index]
        self._step = control_block.announced_steps(index) - 1
        self._num_tokens = 0
        self._counts: tuple[int, ...] | None = None
        self._epoch = wiring.epoch  # of the next announcements
        self._step_epoch = wiring.epoch
        self._plans = 0  # of the next announcements
        self._key = 0
        self._in_flight = False

    def begin_step(self, num_tokens: int) -> int:
        if self._in_flight:
            raise ValueError(f"{self._instance}: begin_step between dispatch and combine")
        if num_tokens < 0:
            raise ValueError(f"{self._instance}: {num_tokens} tokens in a step")
        self._check(num_tokens)
        step = self._step + 1
        if self._peers:
            self._wait_for_announcements(step - 1, layer=0)
        self._check_open()
        self._control_block.announce(self._index, step, num_tokens, self._epoch, self._plans)
        for wakeup in self._peers:
            wakeup.notify()
        self._step = step
        self._num_tokens = num_tokens
        self._counts = None
        return step

    def use_epoch(self, epoch: int) -> None:
        self._epoch = max(self._epoch, epoch)

    def step_pending(self) -> bool:
        return self._control_block.latest_announced() > self._step

    def wait(self, timeout_s: float | None) -> None:
        self._check_open()
        if not self._woken and not self.step_pending():
            self._wakeup.wait(timeout_s)
            self._check_open()
        self._woken = False

    def _next_key(self, layer: int, hidden: Tensor) -> int:
        key = exchange_key(self._step, layer)
        if self._in_flight or key <= self._key or not 0 <= layer < MAX_LAYERS:
            raise ValueError(
                f"{self._instance}: dispatch of layer {layer} of step {self._step}: layers of a "
                "step come in ascending order, each combined before the next"
            )
        if self._num_tokens == 0 or hidden.shape[0] != self._num_tokens:
            raise ValueError(
                f"{self._instance}: dispatch of {tuple(hidden.shape)} in step {self._step}, "
                f"which was announced with {self._num_tokens} tokens"
            )
        return key

    def _begin_layers(self, layer: int) -> tuple[int, ...]:
        """Waits until everybody has announced the step; [attention instances] rows of each."""
        self._wait_for_announcements(self._step, layer)
        self._counts = counts = self._control_block.counts(self._step)
        self._step_epoch = self._control_block.epoch(self._step)
        return counts

    def _wait_for_announcements(self, step: int, layer: int) -> None:
        def late(waited_s: float) -> ExchangeTimeout:
            peer = self._control_block.silent_announcers(step)
            return ExchangeTimeout(
                peer=peer, stage="announce", step=step, layer=layer, waited_s=waited_s
            )

        self._wait_for(lambda: self._control_block.all_announced(step), late)

    def _late_reply(self, waited_s: float) -> ExchangeTimeout:
        """Blames the attention instances that hold up the experts before the experts."""
        step, layer = step_and_layer(self._key)
        peer, stage = (
            self._control_block.silent_dispatchers(self._key, self._counts or ()),
            "dispatch",
        )
        if not peer:
            peer, stage = self._control_block.silent_experts(self._key), "reply"
        return ExchangeTimeout(peer=peer, stage=stage, step=step, layer=layer, waited_s=waited_s)


class LockstepAttention(AttentionSteps):
    """An `AttentionPort` over shared memory."""

    def __init__(
        self,
        index: int,
        control_block: ControlBlock,
        wiring: Wiring,
        store: AttentionStore,
        rule: WaitRule,
    ) -> None:
        super().__init__(index, control_block, wiring, store.check, rule)
        self._store = store

    def dispatch(self, layer: int, hidden: Tensor) -> Ticket:
        key = self._next_key(layer, hidden)
        self._check_open()
        counts = self._counts or self._open_step(layer)
        self._store.put(hidden)
        self._key = key
        self._in_flight = True
        self._control_block.dispatch(self._index, key)
        # Only the last one needs to start the experts. Each stores, fences, then looks, so at
        # least one of those that arrive together sees all; when two do, the second start is idle.
        if self._control_block.all_dispatched(key, counts):
            self._wiring.start_experts(key)
        return Ticket(self._step_epoch, self._step, layer)

    def combine(self, ticket: Ticket) -> Combined:
        key = exchange_key(ticket.step, ticket.layer)
        if not self._in_flight or key != self._key:
            raise ValueError(f"{self._instance}: {ticket} is not in flight")
        self._wait_for(lambda: self._control_block.all_replied(key), self._late_reply)
        self._in_flight = False
        replies = self._store.replies(self._control_block.replies())
        check_routing(ticket, replies)
        return Combined(self._store.combined(), replies)

    def _open_step(self, layer: int) -> tuple[int, ...]:
        counts = self._begin_layers(layer)
        self._store.open_step(counts)
        return counts


class ExpertExchanges(Port):
    """What an expert instance has answered, and who keeps it waiting."""

    def __init__(
        self, index: int, control_block: ControlBlock, wiring: Wiring, rule: WaitRule
    ) -> None:
        instance = InstanceId(pool="expert", number=index)
        super().__init__(instance, control_block, wiring.expert_wakeups[index], wiring, rule)
        self._done = control_block.latest_reply(index)

    def _check_reply(self, work: Work, partial: Tensor) -> None:
        self._check_open()
        if partial.shape != work.hidden.shape:
            raise ValueError(
                f"{self._instance}: reply of {tuple(partial.shape)} to {tuple(work.hidden.shape)}"
            )

    def _late_dispatch(self, waited_s: float) -> ExchangeTimeout | None:
        key = self._control_block.latest_dispatched()
        if key > self._done:
            step, layer = step_and_layer(key)
            peer, stage = (
                self._control_block.silent_dispatchers(key, self._control_block.counts(step)),
                "dispatch",
            )
        else:
            step, layer = self._control_block.latest_announced(), 0
            peer, stage = self._control_block.silent_announcers(step), "announce"
        if not peer:
            return None
        return ExchangeTimeout(peer=peer, stage=stage, step=step, layer=layer, waited_s=waited_s)


class LockstepExpert(ExpertExchanges):
    """An `ExpertPort` over shared memory."""

    def __init__(
        self,
        index: int,
        control_block: ControlBlock,
        wiring: Wiring,
        store: ExpertStore,
        rule: WaitRule,
    ) -> None:
        super().__init__(index, control_block, wiring, rule)
        self._store = store
        self._ready: tuple[int, tuple[int, ...]] | None = None

    def accept(self) -> Work | None:
        self._wait_for(self._woken_or_complete, self._late_dispatch)
        if self._woken:
            self._woken = False
            return None
        assert self._ready is not None
        key, counts = self._ready
        step, layer = step_and_layer(key)
        ticket = Ticket(self._control_block.epoch(step), step, layer)
        return Work(ticket, self._store.batch(counts), counts)

    def reply(self, work: Work, partial: Tensor, metadata: ReplyMetadata) -> None:
        self._check_reply(work, partial)
        self._store.put(partial, metadata.on_device)
        self._done = key = exchange_key(work.ticket.step, work.ticket.layer)
        self._control_block.reply(self._index, key, metadata)
        if self._control_block.all_replied(key):  # the last one rings, as in dispatch
            for wakeup, count in zip(self._wiring.attention_wakeups, work.num_tokens, strict=True):
                if count:
                    wakeup.notify()

    def _woken_or_complete(self) -> bool:
        """Whether `accept` may return; an exchange counts when all participants are there."""
        if self._woken:
            return True
        key = self._control_block.latest_dispatched()
        if key <= self._done:
            return False
        # Who dispatched had seen all announcements of that step, so its counts are in place.
        counts = self._control_block.counts(step_and_layer(key)[0])
        self._ready = (key, counts)
        return self._control_block.all_dispatched(key, counts)
