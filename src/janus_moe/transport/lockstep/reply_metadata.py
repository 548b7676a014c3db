"""What expert instances say beside their sums: compared, and read from a device once per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from janus_moe.errors import ExchangeError, RoutingDivergence
from janus_moe.transport.base import ReplyMetadata, Ticket

Notes = tuple[ReplyMetadata, ...]
"""Of one exchange: [expert instances]."""


def check_routing(ticket: Ticket, notes: Notes) -> None:
    """Raises RoutingDivergence unless all expert instances have routed the batch alike."""
    first = notes[0].routing_digest
    if all(note.routing_digest == first for note in notes):
        return
    digests = ", ".join(f"expert {e}: {note.routing_digest}" for e, note in enumerate(notes))
    raise RoutingDivergence(
        f"expert instances disagree on the routing of step {ticket.step}, layer {ticket.layer} "
        f"(digests: {digests})"
    )


def read_notes(tickets: Sequence[Ticket], notes: Sequence[Notes]) -> list[Notes]:
    """The notes of a step's exchanges with nothing unread: one copy for all, one wait.

    Raises RoutingDivergence, or ExchangeError where an expert id was out of range. Until it
    returns, no result of the step may leave the process.
    """
    unread = [note.unread for row in notes for note in row if note.unread is not None]
    if not unread:
        return list(notes)
    facts = iter(torch.stack(unread).tolist())
    read = [
        tuple(note if note.unread is None else _with(note, next(facts), ticket) for note in row)
        for ticket, row in zip(tickets, notes, strict=True)
    ]
    for ticket, row in zip(tickets, read, strict=True):
        check_routing(ticket, row)
    return read


def _with(note: ReplyMetadata, facts: Sequence[int], ticket: Ticket) -> ReplyMetadata:
    digest, activated, invalid = facts
    if invalid:
        raise ExchangeError(
            f"the router gave an expert id out of range in step {ticket.step}, layer {ticket.layer}"
        )
    return replace(note, routing_digest=digest, activated=activated, unread=None)
