"""What expert instances say beside their sums: compared, and read from a device once per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from janus_moe.errors import ExchangeError, RoutingDivergence
from janus_moe.spec import InstanceId
from janus_moe.transport.base import ReplyMetadata, Ticket

ExchangeMetadata = tuple[ReplyMetadata, ...]
"""[expert instances] metadata of the replies of one layer pass."""


def check_routing(
    ticket: Ticket, replies: ExchangeMetadata, experts: Sequence[InstanceId] = ()
) -> None:
    """Raises RoutingDivergence unless all expert instances have routed the batch alike.

    experts: [expert instances] ids by rank; without them the error names ranks.
    """
    first = replies[0].routing_digest
    if all(metadata.routing_digest == first for metadata in replies):
        return
    names = [str(one) for one in experts] or [f"expert {rank}" for rank in range(len(replies))]
    digests = ", ".join(
        f"{name}: {one.routing_digest}" for name, one in zip(names, replies, strict=True)
    )
    raise RoutingDivergence(
        f"expert instances disagree on the routing of step {ticket.step}, layer {ticket.layer} "
        f"(digests: {digests})"
    )


def read_metadata(
    tickets: Sequence[Ticket], replies: Sequence[ExchangeMetadata]
) -> list[ExchangeMetadata]:
    """The metadata of a step's layer passes with nothing left on a device: one copy, one wait.

    Raises RoutingDivergence, or ExchangeError where an expert id was out of range. Until it
    returns, no result of the step may leave the process.
    """
    on_device = [one.on_device for row in replies for one in row if one.on_device is not None]
    if not on_device:
        return list(replies)
    facts = iter(torch.stack(on_device).tolist())
    read = [
        tuple(one if one.on_device is None else _with(one, next(facts), ticket) for one in row)
        for ticket, row in zip(tickets, replies, strict=True)
    ]
    for ticket, row in zip(tickets, read, strict=True):
        check_routing(ticket, row)
    return read


def _with(metadata: ReplyMetadata, facts: Sequence[int], ticket: Ticket) -> ReplyMetadata:
    digest, activated, invalid = facts
    if invalid:
        raise ExchangeError(
            f"the router gave an expert id out of range in step {ticket.step}, layer {ticket.layer}"
        )
    return replace(metadata, routing_digest=digest, activated=activated, on_device=None)
