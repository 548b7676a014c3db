"""The exchange that a worker takes part in, by the run's transport."""

from __future__ import annotations

from janus_moe.errors import ConfigError
from janus_moe.messages import Setup
from janus_moe.transport import Exchange, LoopbackExchange, ShmAddress, ShmRegion
from janus_moe.transport.rendezvous import Rendezvous


def open_exchange(
    setup: Setup, shm: ShmAddress | None, rendezvous: Rendezvous, bind_host: str
) -> Exchange:
    """Waits for the peers where the transport has to meet them (gloo).

    shm: inherited, where the transport is shm. bind_host: the only address it may listen at.
    """
    config = setup.config
    if config.transport == "loopback":
        return LoopbackExchange(config.shape, setup.epoch)
    if config.transport == "shm":
        assert shm is not None
        return ShmRegion.attach(shm)
    raise ConfigError(f"--transport {config.transport} is not part of this version yet")
