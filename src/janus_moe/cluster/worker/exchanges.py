"""The exchanges that a worker takes part in, by the run's transport."""

from __future__ import annotations

from collections.abc import Sequence

from janus_moe.messages import Setup
from janus_moe.transport import Exchange, LoopbackExchange, ShmAddress, ShmRegion
from janus_moe.transport.network.exchange import ExchangeLayout, GlooExchange
from janus_moe.transport.network.rendezvous import NamespacedRendezvous, Rendezvous


def open_exchanges(
    setup: Setup, shm: Sequence[ShmAddress], rendezvous: Rendezvous, bind_host: str
) -> tuple[Exchange, ...]:
    """One for each micro-batch that may be under way. Waits for the peers where the transport has
    to meet them (gloo).

    shm: inherited, where the transport is shm. bind_host: the only address it may listen at.
    """
    config = setup.config
    match config.transport:
        case "loopback":
            return (LoopbackExchange(setup.membership.shape, setup.membership.placement_epoch),)
        case "shm":
            return tuple(ShmRegion.attach(address) for address in shm)
        case "gloo":
            (instance,) = setup.instances
            layout = _dist_layout(setup)
            meetings = [
                NamespacedRendezvous(rendezvous, number)
                for number in range(config.num_micro_batches)
            ]
            return tuple(GlooExchange(layout, instance, m, bind_host) for m in meetings)
        case "auto":
            raise AssertionError("the plan decides the transport")


def _dist_layout(setup: Setup) -> ExchangeLayout:
    config, membership = setup.config, setup.membership
    return ExchangeLayout(
        shape=membership.shape,
        hidden_size=setup.spec.hidden_size,
        dtype=setup.spec.dtype,
        max_tokens=config.max_num_batched_tokens,
        epoch=membership.placement_epoch,
        attention_nodes=membership.attention_hosts,
        expert_nodes=membership.expert_hosts,
        plan=config.exchange,
        links=setup.links,
    )
