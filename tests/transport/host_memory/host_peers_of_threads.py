"""Instances that have met their host peers, in threads of one process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from janus_moe.transport.exchange_plans.topology import Topology
from janus_moe.transport.host_memory.connecting import connect_host_peers
from janus_moe.transport.host_memory.host_peers import HostPeers, NoHostPeers
from janus_moe.transport.network.rendezvous import MemoryRendezvous, Rendezvous

PAIR = Topology((0,), (0,))


def connect(
    rank: int, topology: Topology, rendezvous: Rendezvous, timeout_s: float
) -> HostPeers | NoHostPeers:
    same_host = topology.host_peers(rank)
    return connect_host_peers(rank, same_host, topology.num_ranks, rendezvous, timeout_s)


@contextmanager
def met(
    topology: Topology = PAIR, rendezvous: MemoryRendezvous | None = None
) -> Iterator[list[HostPeers | NoHostPeers]]:
    """Of every rank: the others of its node."""
    meeting, ranks = rendezvous or MemoryRendezvous(), range(topology.num_ranks)
    with ThreadPoolExecutor(len(ranks)) as threads:
        joins = [threads.submit(connect, r, topology, meeting, 20.0) for r in ranks]
        made = [join.result(30) for join in joins]
    try:
        yield made
    finally:
        for one in made:
            one.close()
