"""Messages between pairs of instances of one host, read where the sender has written them.

Every instance has an anonymous file that its host peers map too: a table of 64-bit words, then the
buffers that it sends from. A message is not moved: the sender says in its table where it lies, the
receiver reads it there and says in its own table that it is done. How host peers got hold of each
other's files is not known here (`connecting`), nor what messages hold.

    mailslot of a peer and tag   [sent, offset, capacity, waits, released, 0, 0, 0]

sent: number of the latest message to that peer, from 1.
offset, capacity: of the buffer that holds it, bytes.
waits: 1 while this instance waits until it is released.
released: number of the latest message from that peer that is not read any more.

A mailslot is written by its owner only, and `sent` and `released` after what they speak of, with a
fence between. Then the peer is notified: always of a message, and of a release if it waits for it.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Mapping

import torch
from torch import Tensor

from janus_moe.transport.host_memory.handshake import Met
from janus_moe.transport.host_memory.waiter import EventWaiter
from janus_moe.transport.lockstep.control_block import LINE_WORDS, WORD_BYTES, make_fence
from janus_moe.transport.lockstep.wakeup import ThreadWakeup, Wakeup
from janus_moe.transport.network.channel import ChannelAborted

TAGS = 256
"""Of messages; larger tags cannot be used between host peers."""
_LINE_BYTES = LINE_WORDS * WORD_BYTES
_SENT, _OFFSET, _CAPACITY, _WAITS, _RELEASED = range(5)


class NoHostPeers:
    """The host peers of an instance that has none."""

    spin_us = 0.0
    peers: frozenset[int] = frozenset()

    def wakeup(self) -> Wakeup:
        return ThreadWakeup()

    def memory(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8)

    def send(self, peer: int, tag: int, buffer: Tensor) -> PendingSend:
        raise AssertionError(f"rank {peer} is no host peer")

    def receive(self, peer: int, tag: int) -> PendingReceive:
        raise AssertionError(f"rank {peer} is no host peer")

    def abort(self) -> None: ...

    def close(self) -> None: ...


class HostPeers:
    """One instance's end; any thread may call.

    file, wakeup: descriptors of this instance; owned from here on.
    peers: by rank, each with the descriptors of its file and wake-up; owned from here on.
    """

    def __init__(
        self, rank: int, num_ranks: int, file: int, wakeup: int, peers: Mapping[int, Met]
    ) -> None:
        self.peers = frozenset(peers)
        self.waiter = EventWaiter(
            wakeup,
            {peer: met.descriptors[1] for peer, met in peers.items()},
            {peer: met.connection for peer, met in peers.items()},
        )
        self._rank = rank
        self._file = file
        self._files = {peer: met.descriptors[0] for peer, met in peers.items()}
        self._mailslots: dict[tuple[int, int], Mailslot] = {}
        self._buffers: dict[int, tuple[int, int]] = {}  # address -> offset, capacity
        self._peer_buffers: dict[tuple[int, int], Tensor] = {}  # peer, offset
        size = table_bytes(num_ranks)
        self._end = size
        self._mine = _words(file, size)
        self._theirs = {peer: _words(file, size) for peer, file in self._files.items()}
        self._lock = threading.Lock()
        self._fence = make_fence()
        self._open = True

    @property
    def spin_us(self) -> float:
        """How long a wait looks again and again before it sleeps."""
        return self.waiter.spin_us

    @spin_us.setter
    def spin_us(self, value: float) -> None:
        self.waiter.spin_us = value

    def wakeup(self) -> Wakeup:
        """Ends its wait with all that host peers do, and when it is notified."""
        return self.waiter.wakeup()

    def memory(self, num_bytes: int) -> Tensor:
        """[num_bytes] uint8 for a buffer to send from; only touched pages take memory."""
        capacity = _whole_pages(num_bytes)
        with self._lock:
            offset, self._end = self._end, self._end + capacity
            os.ftruncate(self._file, self._end)
        data = torch.frombuffer(mmap.mmap(self._file, capacity, offset=offset), dtype=torch.uint8)
        self._buffers[data.data_ptr()] = offset, capacity
        return data[:num_bytes]

    def send(self, peer: int, tag: int, buffer: Tensor) -> PendingSend:
        """Shows a message to `peer`: the start of a buffer from `memory`.

        The message of this tag before it must be over; raises ConnectionError, ChannelAborted.
        """
        if self.waiter.aborted:
            raise ChannelAborted
        if peer in self.waiter.lost:
            raise ConnectionError(f"rank {peer} left")
        mailslot = self._mailslot(peer, tag)
        number = mailslot.sent + 1
        assert mailslot.theirs[_RELEASED] == mailslot.sent, (
            "a message of this peer and tag is under way"
        )
        mailslot.sent = number
        mailslot.mine[_OFFSET], mailslot.mine[_CAPACITY] = self._buffers[buffer.data_ptr()]
        self.fence()
        mailslot.mine[_SENT] = number
        self.waiter.notify(peer)
        return PendingSend(self, mailslot, number)

    def receive(self, peer: int, tag: int) -> PendingReceive:
        """Expects the next message of `peer` with this tag."""
        mailslot = self._mailslot(peer, tag)
        mailslot.expected += 1
        return PendingReceive(self, mailslot, mailslot.expected)

    def abort(self) -> None:
        """Ends all waits, now and later, with ChannelAborted; peers see this end as gone."""
        self.waiter.abort()

    def close(self) -> None:
        """Gives all descriptors back. Memory goes with the last tensor that looks into it."""
        self.waiter.close()
        with self._lock:
            if self._open:
                self._open = False
                for file in (self._file, *self._files.values()):
                    os.close(file)

    def fence(self) -> None:
        with self._lock:
            self._fence()

    def peer_buffer(self, mailslot: Mailslot) -> Tensor:
        """[capacity] uint8: the buffer of the peer with the latest message of the mailslot."""
        key = mailslot.peer, mailslot.theirs[_OFFSET]
        if key not in self._peer_buffers:
            memory = mmap.mmap(
                self._files[mailslot.peer], mailslot.theirs[_CAPACITY], offset=key[1]
            )
            self._peer_buffers[key] = torch.frombuffer(memory, dtype=torch.uint8)
        return self._peer_buffers[key]

    def _mailslot(self, peer: int, tag: int) -> Mailslot:
        mailslot = self._mailslots.get((peer, tag))
        if mailslot is None:
            mine = _line(self._mine, peer, tag)
            theirs = _line(self._theirs[peer], self._rank, tag)
            mailslot = self._mailslots[peer, tag] = Mailslot(peer, mine, theirs)
        return mailslot


class Mailslot:
    """Messages of one peer and tag, both ways.

    mine, theirs: [8] words in the table of each.
    sent, expected: numbers of the latest message in each direction.
    """

    def __init__(self, peer: int, mine: memoryview, theirs: memoryview) -> None:
        self.peer = peer
        self.mine = mine
        self.theirs = theirs
        self.sent = 0
        self.expected = 0


class PendingSend:
    """A message that was sent to a host peer; a `Pending` that is over when it is released."""

    __slots__ = ("_host_peers", "_mailslot", "_number")

    def __init__(self, host_peers: HostPeers, mailslot: Mailslot, number: int) -> None:
        self._host_peers = host_peers
        self._mailslot = mailslot
        self._number = number

    def wait(self, timeout_s: float | None = None) -> None:
        if self._over():
            return
        mailslot = self._mailslot
        mailslot.mine[_WAITS] = 1
        self._host_peers.fence()
        try:
            self._host_peers.waiter.wait(mailslot.peer, self._over, timeout_s)
        finally:
            mailslot.mine[_WAITS] = 0

    def _over(self) -> bool:
        return bool(self._mailslot.theirs[_RELEASED] >= self._number)


class PendingReceive:
    """A message of a host peer; a `Pending` that is over when it has arrived."""

    __slots__ = ("_host_peers", "_mailslot", "_number")

    def __init__(self, host_peers: HostPeers, mailslot: Mailslot, number: int) -> None:
        self._host_peers = host_peers
        self._mailslot = mailslot
        self._number = number

    def arrived(self) -> bool:
        if self._mailslot.theirs[_SENT] < self._number:
            return False
        self._host_peers.fence()
        return True

    def wait(self, timeout_s: float | None = None) -> None:
        self._host_peers.waiter.wait(self._mailslot.peer, self.arrived, timeout_s)

    @property
    def data(self) -> Tensor:
        """[capacity] uint8, to be read only: the message and the rest of its buffer. Only between
        its arrival and `release`."""
        return self._host_peers.peer_buffer(self._mailslot)

    def release(self) -> None:
        """Gives the message back: the sender may write there again."""
        self._host_peers.fence()
        self._mailslot.mine[_RELEASED] = self._number
        self._host_peers.fence()
        if self._mailslot.theirs[_WAITS]:
            self._host_peers.waiter.notify(self._mailslot.peer)


def table_bytes(num_ranks: int) -> int:
    """Size of the table at the start of every file."""
    return _whole_pages(num_ranks * TAGS * _LINE_BYTES)


def _words(file: int, size: int) -> memoryview:
    return memoryview(mmap.mmap(file, size)).cast("q")


def _line(words: memoryview, peer: int, tag: int) -> memoryview:
    start = (peer * TAGS + tag) * LINE_WORDS
    return words[start : start + LINE_WORDS]


def _whole_pages(num_bytes: int) -> int:
    return -(-max(1, num_bytes) // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
