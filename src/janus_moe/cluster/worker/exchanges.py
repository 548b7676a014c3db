"""The exchanges that a worker takes part in, by the run's transport."""

from __future__ import annotations

from janus_moe.messages import Setup
from janus_moe.spec import ONE_PROCESS
from janus_moe.transport import Exchange, ExchangeLayout, open_exchange
from janus_moe.transport.network.rendezvous import NamespacedRendezvous, Rendezvous


def open_exchanges(setup: Setup, rendezvous: Rendezvous, bind_host: str) -> tuple[Exchange, ...]:
    """One for each micro-batch that may be under way; waits for the other workers.

    rendezvous: among all workers of the run.
    bind_host: the only address that this worker may listen at.
    """
    transport, layout = setup.config.transport, _layout(setup)
    if transport == "auto":
        raise AssertionError("the plan decides the transport")
    # Within one process nothing travels that the compute of another part could hide.
    number = 1 if transport in ONE_PROCESS else setup.config.num_micro_batches
    return tuple(
        open_exchange(
            transport,
            layout,
            setup.instances,
            NamespacedRendezvous(rendezvous, f"micro-batch {micro_batch}"),
            bind_host,
        )
        for micro_batch in range(number)
    )


def _layout(setup: Setup) -> ExchangeLayout:
    return ExchangeLayout(
        membership=setup.membership,
        hidden_size=setup.spec.hidden_size,
        dtype=setup.spec.dtype,
        max_tokens=setup.config.max_num_batched_tokens,
        plan=setup.config.exchange,
        links=setup.links,
    )
