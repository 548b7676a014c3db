"""One forward pass of an attention instance: where a layer crosses to the expert pool and back.

This is the seam of the system: everything between `dispatch` and `combine` happens in the other
pool, while this one computes the shared expert. The module knows nothing of requests or sampling.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from janus_moe.messages import ExpertActivity
from janus_moe.model.attention_block import AttentionModel, KvCache, StepInput
from janus_moe.spec import InstanceId
from janus_moe.tracing import SpanLog
from janus_moe.transport import AttentionPort, ReplyMetadata, Ticket, read_metadata


@dataclass(slots=True)
class ExchangeLog:
    """What one pass saw of the expert pool.

    tickets, notes: [MoE layers]. epoch: the placement it used. plan: of its messages over the
    network. notices: for the log. spans: of time.
    """

    dispatch_seconds: float = 0.0
    combine_seconds: float = 0.0
    tickets: list[Ticket] = field(default_factory=list)
    replies: list[tuple[ReplyMetadata, ...]] = field(default_factory=list)
    epoch: int = 0
    plan: str = ""
    notices: list[str] = field(default_factory=list)
    spans: SpanLog = field(default_factory=SpanLog)

    def read(self) -> None:
        """Reads and checks what the pool left on a device. Before it, no token may go out."""
        self.replies = read_metadata(self.tickets, self.replies)

    @property
    def scheduler_seconds(self) -> float:
        """Time of the slowest instance's scheduler, summed over the layers of the pass."""
        return 1e-9 * sum(
            max(metadata.scheduler_ns for metadata in replies) for replies in self.replies
        )

    def activity(self, experts: Sequence[InstanceId]) -> ExpertActivity | None:
        """Activated experts per instance, summed over the layers of the pass.

        experts: the expert instances of the exchange by rank.
        """
        if not self.replies:
            return None
        counts = [[metadata.activated for metadata in replies] for replies in self.replies]
        return ExpertActivity(
            layers=len(counts),
            max_activated=sum(max(row) for row in counts),
            activated=dict(zip(experts, map(sum, zip(*counts, strict=True)), strict=True)),
        )


class Part(NamedTuple):
    """A micro-batch of a step and its own exchange with the expert pool."""

    step: StepInput
    port: AttentionPort


def forward(
    model: AttentionModel, cache: KvCache, parts: Sequence[Part], log: ExchangeLog
) -> Tensor:
    """Hidden states after the last layer, [tokens, hidden], before the final norm.

    Several micro-batches take turns (ping-pong): while the experts have a layer of one, this
    instance computes the next layer of another.
    """
    passes: list[Generator[None, None, Tensor]] = [
        _layers(model, cache, part, log) for part in parts
    ]
    results: list[Tensor] = []
    while passes:
        for one in tuple(passes):
            try:
                next(one)
            except StopIteration as end:  # all have as many layers, so they end in order
                results.append(end.value)
                passes.remove(one)
    return results[0] if len(results) == 1 else torch.cat(results)


def _layers(
    model: AttentionModel, cache: KvCache, part: Part, log: ExchangeLog
) -> Generator[None, None, Tensor]:
    """The layers of one micro-batch; it yields while the experts have its rows."""
    step, port = part
    hidden = model.embed(step)
    for layer, kind in enumerate(model.spec.layers):
        hidden, normed = model.attention(layer, hidden, step, cache)
        if kind.mlp == "dense":
            hidden = hidden + model.dense(layer, normed)
            continue
        ticket, shared = _dispatch(model, layer, normed, port, log)
        yield
        hidden = hidden + _combine(ticket, shared, normed.dtype, port, log)
    return hidden


def _dispatch(
    model: AttentionModel, layer: int, normed: Tensor, port: AttentionPort, log: ExchangeLog
) -> tuple[Ticket, Tensor | None]:
    """Sends the rows of a layer; the shared expert's sums of them, computed meanwhile."""
    log.spans.mark("attention", layer)
    start = time.perf_counter()
    ticket = port.dispatch(layer, normed)
    log.epoch = ticket.epoch
    log.dispatch_seconds += time.perf_counter() - start
    log.spans.mark("dispatch", layer)
    shared = model.shared(layer, normed)
    if shared is not None:
        log.spans.mark("shared expert", layer)
    return ticket, shared


def _combine(
    ticket: Ticket,
    shared: Tensor | None,
    dtype: torch.dtype,
    port: AttentionPort,
    log: ExchangeLog,
) -> Tensor:
    """Routed plus shared experts of one layer, [tokens, hidden] of `dtype`."""
    start = time.perf_counter()
    combined = port.combine(ticket)
    log.combine_seconds += time.perf_counter() - start
    log.spans.mark("combine", ticket.layer)
    log.tickets.append(ticket)
    log.replies.append(combined.replies)
    log.plan = combined.plan
    if combined.notice:
        log.notices.append(combined.notice)
    routed = combined.hidden.to(dtype)
    return routed if shared is None else routed + shared
