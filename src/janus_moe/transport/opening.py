"""Opens an exchange for one membership: the one function that a worker needs.

Any living process can open any number of exchanges, one beside the other. How peers find each other
is the rendezvous's business; what instances do over the exchange is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence

from janus_moe.errors import ConfigError
from janus_moe.spec import ONE_PROCESS, InstanceId, TransportName
from janus_moe.transport.base import CONNECT_TIMEOUT_S, Exchange, ExchangeLayout
from janus_moe.transport.host_memory.shared_memory import open_shared_memory
from janus_moe.transport.loopback import LoopbackExchange
from janus_moe.transport.network.exchange import open_network
from janus_moe.transport.network.rendezvous import NamespacedRendezvous, Rendezvous


def open_exchange(
    transport: TransportName,
    layout: ExchangeLayout,
    instances: Sequence[InstanceId],
    rendezvous: Rendezvous,
    bind_host: str,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> Exchange:
    """Opens this process's end; blocks until all members have done so, where there are others.

    Raises ExchangeError naming the missing ones after `timeout_s`.

    layout: what all members agree on, the membership included.
    instances: members that live in this process.
    rendezvous: shared by all members; values of other generations do not disturb.
    bind_host: the only address of this host that may be listened at.
    """
    meeting = NamespacedRendezvous(rendezvous, f"generation {layout.membership.generation}")
    if transport in ONE_PROCESS and set(instances) != set(layout.membership.instances):
        raise ConfigError(f"with {transport}, all instances live in one process")
    match transport:
        case "loopback":
            return LoopbackExchange(layout.membership)
        case "shm":
            return open_shared_memory(layout, instances, meeting, timeout_s)
        case "gloo":
            (instance,) = instances
            return open_network(layout, instance, meeting, bind_host, timeout_s=timeout_s)
