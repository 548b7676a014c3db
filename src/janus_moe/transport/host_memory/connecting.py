"""From instances of one host to their `HostPeers`: each connects to the ones of higher rank.

Which instances are on one host is known from the exchange's layout; whether they can share memory
shows only here.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Sequence

from janus_moe.errors import ExchangeError
from janus_moe.transport.host_memory.handshake import Advertisement, Listener
from janus_moe.transport.host_memory.host_peers import HostPeers, NoHostPeers, table_bytes
from janus_moe.transport.network.rendezvous import Rendezvous

_NUM_DESCRIPTORS = 2  # file and wake-up

logger = logging.getLogger(__name__)


def connect_host_peers(
    rank: int, same_host: Sequence[int], num_ranks: int, rendezvous: Rendezvous, timeout_s: float
) -> HostPeers | NoHostPeers:
    """Connects to the instances of this host that share memory; blocks until all of them do so.

    Instances that cannot (another system, network namespace or user) are left out, on both sides,
    and logged. Raises ExchangeError when one is missing after `timeout_s`.

    same_host: ranks of the other instances on this host.
    """
    if not same_host:
        return NoHostPeers()
    deadline = time.monotonic() + timeout_s
    with Listener(rank) as listener:
        own = listener.advertisement
        own.publish(_key(rank), rendezvous)
        peers = {
            peer: advertisement
            for peer in same_host
            if own.shares_memory_with(
                advertisement := _advertisement_of(peer, rank, rendezvous, timeout_s)
            )
        }
        apart = [peer for peer in same_host if peer not in peers]
        if apart:
            logger.warning(
                "rank %d cannot share memory with rank %s of its host (another system, network "
                "namespace or user): messages between them go over TCP",
                rank,
                ", ".join(map(str, apart)),
            )
        if not peers:
            return NoHostPeers()
        return _meet(listener, peers, num_ranks, deadline, timeout_s)


def _meet(
    listener: Listener,
    peers: dict[int, Advertisement],
    num_ranks: int,
    deadline: float,
    timeout_s: float,
) -> HostPeers:
    rank = listener.rank
    with contextlib.ExitStack() as held:  # given back when something fails
        file, wakeup = own = _create(num_ranks)
        held.callback(os.close, file)
        held.callback(os.close, wakeup)
        try:
            for peer, advertisement in peers.items():
                if peer > rank:
                    listener.connect(peer, advertisement, own, deadline)
            lower = {peer: peers[peer] for peer in peers if peer < rank}
            listener.accept(lower, own, _NUM_DESCRIPTORS, deadline)
            listener.receive_answers(_NUM_DESCRIPTORS, deadline)
        except (OSError, TimeoutError) as error:
            missing = ", ".join(str(peer) for peer in peers if peer not in listener.met)
            raise ExchangeError(
                f"rank {rank} did not get hold of the memory of rank {missing} of its host within "
                f"{timeout_s:g} s: {error}"
            ) from error
        held.pop_all()
    return HostPeers(rank, num_ranks, file, wakeup, listener.take())


def _key(rank: int) -> str:
    return f"rank {rank}/host memory"


def _advertisement_of(
    peer: int, rank: int, rendezvous: Rendezvous, timeout_s: float
) -> Advertisement:
    try:
        return Advertisement.read(_key(peer), rendezvous, timeout_s)
    except ExchangeError as error:
        raise ExchangeError(f"rank {rank} does not know where rank {peer} is: {error}") from error


def _create(num_ranks: int) -> tuple[int, int]:
    """File and wake-up of an instance."""
    file = os.memfd_create("janus-host-peer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(file, table_bytes(num_ranks))
        # A process that maps memory which a host peer takes away again would be killed.
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return file, os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    except OSError:
        os.close(file)
        raise
