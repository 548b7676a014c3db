"""A channel over gloo, point to point only: no collectives, no default process group, no TCPStore.

Addresses travel through a `Rendezvous`, and gloo listens on one given address. Facts about gloo
(https://github.com/pytorch/gloo, transport/tcp) that shape this module:

- A message may be shorter than the receive that was posted for it, never longer.
- A send goes out once the peer has posted the receive, so receives should be posted early.
- A wait that times out closes all connections of its process group. That is also the only way to
  end waits from outside, and how `abort` works.
- Its port stays open, and connections of other processes are kept until this one has no
  descriptor left. So the port is closed to new connections as soon as all ranks are connected.
"""

from __future__ import annotations

import datetime
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.distributed.distributed_c10d as c10d
from torch import Tensor

from janus_moe.errors import ExchangeError
from janus_moe.transport.network.channel import ChannelAborted
from janus_moe.transport.network.port_filter import drop_new_connections
from janus_moe.transport.network.rendezvous import Rendezvous

_Gloo: Any = c10d.ProcessGroupGloo  # torch's stubs do not show what is used of it
_FOREVER = datetime.timedelta(days=3650)
_ABORT_TAG = (1 << 30) + 1  # no message has it

logger = logging.getLogger(__name__)


class GlooChannel:
    """A `Channel`. Making one blocks until all ranks do, at most `timeout_s`.

    bind_host: address that gloo listens on, one that the other hosts can reach.
    """

    def __init__(
        self, rank: int, num_ranks: int, rendezvous: Rendezvous, bind_host: str, timeout_s: float
    ) -> None:
        self._peers = [peer for peer in range(num_ranks) if peer != rank]
        self._aborted = False
        options = _Gloo._Options()
        options._timeout = datetime.timedelta(seconds=timeout_s)
        options._threads = 1
        try:
            options._devices = [_Gloo.create_device(hostname=bind_host, lazy_init=False)]
            store = _Addresses(rendezvous, timeout_s)
            self._group = _Gloo(store, rank, num_ranks, options)
        except (RuntimeError, TimeoutError) as error:
            raise ExchangeError(
                f"rank {rank} of {num_ranks} could not connect to the others from {bind_host}: "
                f"{_first_line(error)}; all hosts must reach each other's --bind address"
            ) from error
        _drop_new_connections(store.published, bind_host)

    def send(self, peer: int, tag: int, buffer: Tensor) -> _GlooPending:
        return _GlooPending(self, peer, self._post(self._group.send, peer, tag, buffer))

    def receive(self, peer: int, tag: int, buffer: Tensor) -> _GlooPending:
        return _GlooPending(self, peer, self._post(self._group.recv, peer, tag, buffer))

    def abort(self) -> None:
        if self._aborted:
            return
        self._aborted = True
        for peer in self._peers:
            try:
                unused = self._group.recv([torch.empty(1)], peer, _ABORT_TAG)
            except RuntimeError:
                continue  # this peer's connection is closed already
            with suppress(RuntimeError):
                unused.wait(datetime.timedelta(milliseconds=1))
            return

    def _post(self, post: Any, peer: int, tag: int, buffer: Tensor) -> Any:
        try:
            return post([buffer], peer, tag)
        except RuntimeError as error:
            raise self.explain(peer, error) from error

    def explain(self, peer: int, error: RuntimeError) -> Exception:
        if self._aborted:
            return ChannelAborted()
        if "Timed out" in str(error):
            return TimeoutError(_first_line(error))
        return ConnectionError(f"rank {peer}: {_first_line(error)}")


class _GlooPending:
    """A `Pending` of gloo."""

    __slots__ = ("_channel", "_lock", "_peer", "_work")

    def __init__(self, channel: GlooChannel, peer: int, work: Any) -> None:
        self._channel = channel
        self._peer = peer
        self._work = work
        self._lock = threading.Lock()

    def wait(self, timeout_s: float | None = None) -> None:
        if self._work is None:
            return
        limit = _FOREVER if timeout_s is None else datetime.timedelta(seconds=timeout_s)
        # Every wait of a gloo work takes one message, so only one thread may wait.
        if not self._lock.acquire(timeout=-1 if timeout_s is None else timeout_s):
            raise TimeoutError(f"no message within {timeout_s} s")
        try:
            if self._work is not None:
                self._work.wait(limit)
                self._work = None
        except RuntimeError as error:
            raise self._channel.explain(self._peer, error) from error
        finally:
            self._lock.release()


class _Addresses(c10d.Store):
    """What gloo needs of a store, over a rendezvous: every rank sets once, all wait and get.

    published: all that this rank has set.
    """

    def __init__(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        super().__init__()
        self.published = b""
        self._rendezvous = rendezvous
        self._timeout_s = timeout_s

    def set(self, key: str, value: str | bytes) -> None:
        data = value.encode() if isinstance(value, str) else bytes(value)
        self.published += data
        self._rendezvous.put(f"gloo/{key}", data)

    def get(self, key: str) -> bytes:
        return self._rendezvous.get(f"gloo/{key}", self._timeout_s)

    def wait(self, keys: Sequence[str], timeout: datetime.timedelta | None = None) -> None:
        limit_s = self._timeout_s if timeout is None else timeout.total_seconds()
        for key in keys:
            self._rendezvous.get(f"gloo/{key}", limit_s)


def _drop_new_connections(published: bytes, bind_host: str) -> None:
    """The mesh is complete, so no other process has a reason to connect."""
    try:
        listening = drop_new_connections(published)
    except OSError as error:
        listening = 0
        logger.warning("no packet filters here: %s", error.strerror)
    if not listening:
        logger.warning(
            "the port for activations at %s stays open to others, who can use up this process's "
            "file descriptors; use a network that only the hosts are on",
            bind_host,
        )


def _first_line(error: Exception) -> str:
    """Without gloo's place in its source and its advice."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rpartition("] ")[2].partition(". This is")[0]
