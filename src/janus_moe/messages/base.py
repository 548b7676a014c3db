"""What both directions of control messages share."""

from __future__ import annotations

import msgspec


class Message(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True
):  # one tagged union per direction
    """Base of the control messages."""


class StorePut(Message, frozen=True):
    """A value by which instances find each other, such as an address of the transport.

    It goes from the worker that has it to the engine, and from there to all workers.
    """

    key: str
    value: bytes
