"""The contract of the exchange between the attention and the expert pool.

Lockstep: in step s all attention instances' tokens of one layer form one batch for the experts.
Every attention instance announces the step with its token count, the same for all layers; with 0
it takes no further part in that step. Per layer every participant dispatches its rows. Every
expert instance sees their concatenation in ascending order of rank and replies with partial sums
for all rows. Every participant combines its own rows in ascending expert order, so the result does
not depend on timing; nor, with float32 rows, on which instance has which experts (`sum_dtype`). An
instance with nothing to do is blocked, not spinning.

This module does not know how bytes travel (`loopback`, `host_memory`, `network`) or what experts
compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec
import torch
from torch import Tensor

from janus_moe.errors import ConfigError
from janus_moe.planner.latency.link_fit import COEFFICIENTS
from janus_moe.spec import (
    DTYPE_BYTES,
    EXCHANGE_PLANS,
    Dtype,
    ExchangePlanName,
    InstanceId,
    Membership,
    PoolShape,
    Spec,
)
from janus_moe.torch_dtypes import TORCH_DTYPES
from janus_moe.transport.exchange_plans import Topology
from janus_moe.transport.exchange_plans.program import RowBytes

CONNECT_TIMEOUT_S = 60.0


class ExchangeLayout(Spec, frozen=True):
    """What all instances of an exchange must agree on; an exchange never changes.

    membership: who takes part, on which hosts, and the epoch of the first steps.
    hidden_size: elements of a row.
    dtype: of the hidden states; that of partial sums follows, see `sum_dtype`.
    max_tokens: rows per attention instance and step.
    plan: which rows travel in which messages between hosts; auto is decided step by step.
    links: what a message costs, coefficients of `planner.latency.LinkModel`; {} is not measured.
    within_nodes: how messages of the network exchange travel between instances of one host.
    """

    membership: Membership
    hidden_size: int
    dtype: Dtype
    max_tokens: int
    plan: ExchangePlanName | Literal["auto"] = "auto"
    links: dict[str, float] = msgspec.field(default_factory=dict)
    within_nodes: Literal["memory", "gloo"] = "memory"

    def __post_init__(self) -> None:
        if self.plan not in ("auto", *EXCHANGE_PLANS):
            raise ConfigError(
                f"no exchange plan {self.plan!r}; there are auto, {', '.join(EXCHANGE_PLANS)}"
            )
        if unknown := set(self.links) - set(COEFFICIENTS):
            raise ConfigError(f"links have {', '.join(COEFFICIENTS)}, not {', '.join(unknown)}")

    @property
    def shape(self) -> PoolShape:
        return self.membership.shape

    @property
    def topology(self) -> Topology:
        return Topology(self.membership.attention_hosts, self.membership.expert_hosts)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of the hidden states."""
        return TORCH_DTYPES[self.dtype]

    @property
    def row_bytes(self) -> RowBytes:
        there, back = DTYPE_BYTES[self.dtype], self.sum_dtype.itemsize
        return RowBytes(dispatch=self.hidden_size * there, reply=self.hidden_size * back)

    @property
    def sum_dtype(self) -> torch.dtype:
        """Of partial sums."""
        return sum_dtype(self.torch_dtype, self.shape.expert)


def sum_dtype(rows: torch.dtype, num_expert_instances: int) -> torch.dtype:
    """What partial sums travel in; they are rounded to float32 once, in `combine`.

    In float64 a sum of a token's few expert outputs is exact as long as their exponents differ by
    less than some 26 bits. The result then does not depend on how placements group them. A single
    instance has the whole sum and rounds it itself. Rows of bfloat16 are rounded anyway.

    rows: dtype of the hidden states.
    """
    several = num_expert_instances > 1
    return torch.float64 if several and rows == torch.float32 else torch.float32


@dataclass(frozen=True, slots=True)
class Ticket:
    """The name of one layer pass: an MoE layer of a step.

    epoch: placement of the step.
    """

    epoch: int
    step: int
    layer: int


@dataclass(frozen=True, slots=True)
class ReplyMetadata:
    """What travels with a reply beside the sums; all numbers are signed 64-bit.

    routing_digest: equal on all expert instances when they agree on the routing of the batch.
    activated: distinct experts that the instance activated.
    scheduler_ns: time of its activation scheduler, nanoseconds.
    on_device: [3] int64 on a device, not waited for: digest and activated, which are 0 in their
        own fields until then, and 1 where an expert id was out of range; None means all is on the
        host. Only within one process, see `lockstep.reply_metadata`.
    """

    routing_digest: int
    activated: int
    scheduler_ns: int = 0
    on_device: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Combined:
    """What an attention instance gets back for its rows of one layer.

    hidden: [tokens, hidden] float32, sum over expert instances. It may live in a buffer of the
        transport: it is valid until the same instance's next `dispatch` or `begin_step`.
    replies: [expert instances] metadata of each reply.
    plan: of the messages; "" means there are none.
    notice: a sentence for the log, mostly "".
    """

    hidden: Tensor
    replies: tuple[ReplyMetadata, ...]
    plan: str = ""
    notice: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """One batch that an expert instance has accepted.

    hidden: [total tokens, hidden], all participants' rows; read-only and valid until `reply`.
    num_tokens: [attention instances] rows of each, 0 for those that are idle in this step.
    sums: dtype that partial sums travel in; others are converted.
    """

    ticket: Ticket
    hidden: Tensor
    num_tokens: tuple[int, ...]
    sums: torch.dtype = torch.float32


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

    def leave(self) -> None:
        """Takes no part in any later step: it counts as announced with 0 tokens in all of them.

        Not between dispatch and combine. Afterwards only `close` may be called.
        """
        ...

    def dispatch(self, layer: int, hidden: Tensor) -> Ticket:
        """Sends this instance's rows of `layer`; layers of a step come in ascending order.

        hidden: [tokens announced, hidden]; may be overwritten as soon as this returns. The first
        dispatch of a step blocks until every peer has announced the step.
        """
        ...

    def combine(self, ticket: Ticket) -> Combined:
        """Waits for all expert instances and sums their replies.

        Raises ExchangeTimeout naming the late peers, RoutingDivergence, or ExchangeClosed.
        Metadata that lies on a device is not compared yet.
        """
        ...

    def close(self) -> None:
        """Ends this port's waits with ExchangeClosed."""
        ...


class ExpertPort(Protocol):
    """One expert instance's end. One thread uses it; `wake` and `close` may come from others."""

    def accept(self) -> Work | None:
        """Blocks until all participants of a layer pass have dispatched; None after `wake`.

        Raises ExchangeTimeout naming the missing ones once any of them has dispatched, and
        ExchangeEnded once all attention instances have left.
        """
        ...

    def reply(self, work: Work, partial: Tensor, metadata: ReplyMetadata) -> None:
        """Sends partial sums of all rows.

        partial: [total tokens, hidden] float32 or float64; stays unchanged until `accept` returns
            new work.
        """
        ...

    def wake(self) -> None:
        """Makes the current or the next `accept` return None."""
        ...

    def close(self) -> None:
        """Ends this port's waits with ExchangeClosed."""
        ...


class Exchange(Protocol):
    """The ends of one exchange that this process holds; see `opening.open_exchange`.

    rank: position of the instance in its pool, by the membership of the exchange.
    """

    def attention_port(self, rank: int, rule: WaitRule) -> AttentionPort: ...

    def expert_port(self, rank: int, rule: WaitRule) -> ExpertPort: ...

    def shutdown(self) -> None:
        """Ends every wait of every instance, now and later, with ExchangeClosed."""
        ...

    def close(self) -> None:
        """Gives back memory, descriptors and threads; the ports must not be in use any more."""
        ...


def global_rank(membership: Membership, instance: InstanceId) -> int:
    """Position among all members, attention instances first; ConfigError when it is none."""
    if instance not in membership.instances:
        raise ConfigError(f"{instance} is not in generation {membership.generation}")
    return membership.instances.index(instance)


def spin_budget_us(num_cores: int, compute_threads: int) -> float:
    """How long a waiting process may spin, in microseconds.

    A spinning waiter only helps on a core that no other thread wants; otherwise it starves the
    instance it waits for. The engine and the rest of the host want a core too, which is counted
    here.

    num_cores: of the host.
    compute_threads: threads of both pools on this host that may compute at once.
    """
    return 50.0 if num_cores > compute_threads + 1 else 0.0
