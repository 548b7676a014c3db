"""Where the messages of one lane come in: a buffer that a channel fills, or a host peer's memory.

What is read from messages, and when they are expected, is not known here.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from janus_moe.transport.host_memory.host_peers import HostPeers, NoHostPeers, PendingReceive
from janus_moe.transport.network.channel import Channel, Pending
from janus_moe.transport.network.message_buffers import MessageBuffer


class RemoteReceive:
    """Messages of a peer that come through a channel.

    pending: the receive that is posted; None means none.
    posted_ns: when, for the record.
    """

    def __init__(self, channel: Channel, peer: int, tag: int, buffer: MessageBuffer) -> None:
        self.buffer = buffer
        self.pending: Pending | None = None
        self.posted_ns = 0
        self._channel = channel
        self._peer = peer
        self._tag = tag

    def post(self) -> None:
        self.pending = self._channel.receive(self._peer, self._tag, self.buffer.data)


class HostReceive:
    """Messages of a host peer, which lie in its memory.

    view: makes a `MessageBuffer` of such memory; the peer has a few buffers, so views are kept.
    pending: the message that is expected or read; None means none.
    posted_ns: when it was expected first, for the record.
    """

    def __init__(
        self,
        host_peers: HostPeers | NoHostPeers,
        peer: int,
        tag: int,
        view: Callable[[Tensor], MessageBuffer],
    ) -> None:
        self.pending: PendingReceive | None = None
        self.posted_ns = 0
        self._host_peers = host_peers
        self._peer = peer
        self._tag = tag
        self._view = view
        self._views: dict[int, MessageBuffer] = {}

    def post(self) -> None:
        self.pending = self._host_peers.receive(self._peer, self._tag)

    @property
    def buffer(self) -> MessageBuffer:
        """Of the message that has arrived, until it is released."""
        assert self.pending is not None
        data = self.pending.data
        key = data.data_ptr()
        if key not in self._views:
            self._views[key] = self._view(data)
        return self._views[key]

    def release(self) -> None:
        """The message is not read any more; the next one can be posted."""
        if self.pending is not None:
            self.pending.release()
            self.pending = None


ReceiveSlot = RemoteReceive | HostReceive
