"""Channels among threads of one process, for tests without a network."""

from __future__ import annotations

import threading
from collections import deque

from torch import Tensor

from janus_moe.transport.network.channel import ChannelAborted, Pending


class LocalNetwork:
    """Channels among threads of one process, for tensors of any device.

    As on a real network without buffers, a send is over when its receive is there.
    """

    def __init__(self, num_ranks: int) -> None:
        self._changed = threading.Condition()
        self._sends: dict[tuple[int, int, int], deque[_Local]] = {}
        self._receives: dict[tuple[int, int, int], deque[_Local]] = {}
        self._gone = [False] * num_ranks

    def channel(self, rank: int) -> LocalChannel:
        return LocalChannel(self, rank)

    def post(self, source: int, target: int, tag: int, buffer: Tensor, *, sends: bool) -> _Local:
        """Matches a send with a receive, or keeps it until there is one."""
        key = (source, target, tag)
        mine = _Local(self, source if sends else target, target if sends else source, buffer)
        with self._changed:
            others = (self._receives if sends else self._sends).setdefault(key, deque())
            if not others:
                (self._sends if sends else self._receives).setdefault(key, deque()).append(mine)
                return mine
            other = others.popleft()
            give, take = (mine, other) if sends else (other, mine)
            if give.buffer.numel() > take.buffer.numel():
                raise ValueError(f"a message of {give.buffer.numel()} for {take.buffer.numel()}")
            take.buffer[: give.buffer.numel()].copy_(give.buffer)
            give.done = take.done = True
            self._changed.notify_all()
        return mine

    def leave(self, rank: int) -> None:
        with self._changed:
            self._gone[rank] = True
            self._changed.notify_all()

    def wait(self, pending: _Local, timeout_s: float | None) -> None:
        with self._changed:
            over = self._changed.wait_for(lambda: pending.done or self._cut(pending), timeout_s)
            if pending.done:
                return
            if not over:
                raise TimeoutError(f"no message within {timeout_s} s")
            if self._gone[pending.rank]:
                raise ChannelAborted
            raise ConnectionError(f"rank {pending.peer} left")

    def _cut(self, pending: _Local) -> bool:
        return self._gone[pending.rank] or self._gone[pending.peer]


class _Local:
    """A `Pending` of a local network."""

    def __init__(self, network: LocalNetwork, rank: int, peer: int, buffer: Tensor) -> None:
        self.rank = rank
        self.peer = peer
        self.buffer = buffer
        self.done = False
        self._network = network

    def wait(self, timeout_s: float | None = None) -> None:
        if not self.done:
            self._network.wait(self, timeout_s)


class LocalChannel:
    """A `Channel` of a local network."""

    def __init__(self, network: LocalNetwork, rank: int) -> None:
        self._network = network
        self._rank = rank

    def send(self, peer: int, tag: int, buffer: Tensor) -> Pending:
        return self._network.post(self._rank, peer, tag, buffer, sends=True)

    def receive(self, peer: int, tag: int, buffer: Tensor) -> Pending:
        return self._network.post(peer, self._rank, tag, buffer, sends=False)

    def abort(self) -> None:
        self._network.leave(self._rank)
