"""The contract of the exchange between the attention and the expert pool.

Lockstep: in step s all attention instances' tokens of one layer form one batch for the experts.
Every attention instance announces the step with its token count, the same for all layers; with 0
it takes no further part in that step. Per layer every participant dispatches its rows, every
expert instance sees their concatenation in ascending instance order and replies with partial sums
for all rows, and every participant combines its own rows: float32, ascending expert order, so the
result does not depend on timing. Whoever has nothing to do is blocked, not spinning.

This module does not know how bytes travel (`loopback`, `shm`) or what experts compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Ticket:
    """Names one exchange. epoch: the placement of its step."""

    epoch: int
    step: int
    layer: int


@dataclass(frozen=True, slots=True)
class ReplyMetadata:
    """What travels with a reply; all numbers are signed 64-bit.

    routing_digest: equal on all expert instances when they agree on the routing of the batch.
    activated: distinct experts the instance activated.
    scheduler_ns: nanoseconds its activation scheduler took.
    on_device: [3] int64 on a device that nobody has waited for: the first two, which are 0 until
        then, and 1 where an expert id was out of range. Only within one process; see `replies`.
    """

    routing_digest: int
    activated: int
    scheduler_ns: int = 0
    on_device: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Combined:
    """hidden: [tokens, hidden] float32, sum over expert instances of this instance's rows.

    The tensor may live in a buffer of the transport: it is valid until the same instance's next
    `dispatch` or `begin_step`. notes: one per expert instance. plan: of the messages, "" where
    there are none. notice: a sentence for the log, mostly "".
    """

    hidden: Tensor
    replies: tuple[ReplyMetadata, ...]
    plan: str = ""
    notice: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """hidden: [total tokens, hidden], all participants' rows; read-only and valid until `reply`.

    num_tokens: [attention instances] rows of each, 0 for those that are idle in this step.
    """

    ticket: Ticket
    hidden: Tensor
    num_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WaitRule:
    """How a blocked port waits.

    timeout_s: without any progress of the exchange for so long, a wait raises ExchangeTimeout.
    spin_us: how long to look again and again before going to sleep; see `spin_budget_us`.
    """

    timeout_s: float = 60.0
    spin_us: float = 0.0


class AttentionPort(Protocol):
    """One attention instance's end. One thread uses it; `wake` and `close` may come from others."""

    def begin_step(self, num_tokens: int) -> int:
        """Announces the next step with `num_tokens` rows (0: idle in it) and returns its number.

        Blocks while a peer has not announced the step before, at most the rest of that step.
        """
        ...

    def use_epoch(self, epoch: int) -> None:
        """Steps that this instance announces from now on have placement `epoch` or a later one.

        A step has the latest epoch that any instance announced for it, so all tickets of a step
        agree and the epochs of steps never fall. Every expert instance must know `epoch` by now.
        """
        ...

    def step_pending(self) -> bool:
        """Whether a peer has announced a step that this instance has not."""
        ...

    def wait(self, timeout_s: float | None) -> None:
        """Blocks until a step is pending, `wake` or the timeout; may return early."""
        ...

    def wake(self) -> None:
        """Ends the current wait, or the next one, of this instance."""
        ...

    def dispatch(self, layer: int, hidden: Tensor) -> Ticket:
        """Sends this instance's rows of `layer`; layers of a step come in ascending order.

        hidden: [tokens announced, hidden]; may be overwritten as soon as this returns. The first
        dispatch of a step blocks until every peer has announced the step.
        """
        ...

    def combine(self, ticket: Ticket) -> Combined:
        """Waits for all expert instances and sums their replies.

        Raises ExchangeTimeout naming whoever is late, RoutingDivergence, or ExchangeClosed. Notes
        with something unread are not compared yet.
        """
        ...

    def close(self) -> None:
        """Ends this port's waits with ExchangeClosed; the other instances are not affected."""
        ...


class ExpertPort(Protocol):
    """One expert instance's end. One thread uses it; `wake` and `close` may come from others."""

    def accept(self) -> Work | None:
        """Blocks until all participants of an exchange have dispatched; None after `wake`.

        Raises ExchangeTimeout naming the missing ones once any of them has dispatched.
        """
        ...

    def reply(self, work: Work, partial: Tensor, metadata: ReplyMetadata) -> None:
        """Sends partial sums of all rows.

        partial: [total tokens, hidden] float32; stays unchanged until `accept` returns new work.
        """
        ...

    def wake(self) -> None:
        """Makes the current or the next `accept` return None."""
        ...

    def close(self) -> None:
        """Ends this port's waits with ExchangeClosed; the other instances are not affected."""
        ...


class Exchange(Protocol):
    """All instances' ends of one exchange, as a launcher or a worker process holds them."""

    def attention_port(self, index: int, rule: WaitRule) -> AttentionPort: ...

    def expert_port(self, index: int, rule: WaitRule) -> ExpertPort: ...

    def shutdown(self) -> None:
        """Ends every wait of every instance, now and later, with ExchangeClosed."""
        ...


def spin_budget_us(num_cores: int, compute_threads: int) -> float:
    """How long a waiting process may spin, in microseconds.

    compute_threads: threads of both pools on this host that may compute at once. A spinning waiter
    only helps on a core that nobody else wants, otherwise it starves the one it waits for; the
    engine and the rest of the host want a core too.
    """
    return 50.0 if num_cores > compute_threads else 0.0
