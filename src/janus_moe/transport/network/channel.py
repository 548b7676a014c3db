"""Point-to-point messages between instances: the contract that a network implements.

A channel carries whole buffers between instances, by global rank (attention instances first).
Messages of one pair and tag arrive in the order they were sent. It knows nothing of plans, steps
or layers. Errors are those of the standard library, because only the caller knows what a message
was for: TimeoutError, ConnectionError for a peer that is gone, `ChannelAborted` for one's own end.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class ChannelAborted(Exception):
    """This end of the channel was aborted."""


class Pending(Protocol):
    """A message that was sent or is expected; its buffer must stay as it is until `wait` is over.

    Several threads may wait.
    """

    def wait(self, timeout_s: float | None = None) -> None:
        """Blocks until the buffer is sent or filled; at once when it has been waited for.

        Raises TimeoutError, after which the channel may be unusable, ConnectionError or
        ChannelAborted.
        """
        ...


class Channel(Protocol):
    """One instance's end. Buffers are contiguous; any thread may call."""

    def send(self, peer: int, tag: int, buffer: Tensor) -> Pending: ...

    def receive(self, peer: int, tag: int, buffer: Tensor) -> Pending:
        """Expects one message of at most the size of `buffer`; a shorter one fills its start."""
        ...

    def abort(self) -> None:
        """Ends all waits, now and later, with ChannelAborted; peers see this end as gone."""
        ...
