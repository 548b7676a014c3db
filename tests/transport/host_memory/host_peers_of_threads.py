"""Instances that have met their neighbours, in threads of one process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from janus_moe.transport.exchange_plans.topology import Topology
from janus_moe.transport.host_memory.handshake import connect_host_peers
from janus_moe.transport.host_memory.host_peers import HostPeers, NoHostPeers
from janus_moe.transport.network.rendezvous import MemoryRendezvous

PAIR = Topology((0,), (0,))


@contextmanager
def met(
    topology: Topology = PAIR, rendezvous: MemoryRendezvous | None = None
) -> Iterator[list[HostPeers | NoHostPeers]]:
    """Of every rank: the others of its node."""
    meeting, ranks = rendezvous or MemoryRendezvous(), range(topology.num_ranks)
    with ThreadPoolExecutor(len(ranks)) as threads:
        joins = [threads.submit(connect_host_peers, r, topology, meeting, 20.0) for r in ranks]
        made = [join.result(30) for join in joins]
    try:
        yield made
    finally:
        for one in made:
            one.close()
