"""Which transport connects the pools, and how messages between hosts travel.

It knows settings and which host runs what, not what messages cost: that is decided while serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from janus_moe.cluster.hosts.shares import HostShare
from janus_moe.config import EngineConfig, TransportSetting
from janus_moe.errors import ConfigError
from janus_moe.spec import ExchangePlanName


def choose_transport(
    config: EngineConfig, shares: Sequence[HostShare]
) -> tuple[TransportSetting, str | None]:
    """TCP between hosts; on one host one process where nothing can run side by side."""
    if not all(share.is_local for share in shares):
        return _between_hosts(config, shares), None
    if config.transport != "auto":
        return config.transport, None
    (share,) = shares
    single = len(share.attention) == len(share.expert) == 1 == config.num_micro_batches
    transport: TransportSetting = "loopback" if single or config.device == "cuda" else "shm"
    return transport, f"transport {transport}"


def _between_hosts(config: EngineConfig, shares: Sequence[HostShare]) -> TransportSetting:
    if config.device == "cuda":
        raise ConfigError(
            "--device cuda runs all instances on one GPU of this host; use --device cpu with "
            "--hosts"
        )
    if config.transport not in ("auto", "gloo"):
        raise ConfigError(
            f"--transport {config.transport} stays on one host, but --hosts names "
            f"{', '.join(share.name for share in shares)}; use --transport gloo (or auto)"
        )
    return "gloo"


def choose_exchange(
    config: EngineConfig, transport: TransportSetting, shares: Sequence[HostShare]
) -> tuple[Literal["auto", ExchangePlanName], str | None]:
    """One phase where no host has two instances to aggregate for, else the adaptive choice."""
    if transport != "gloo":
        if config.exchange != "auto":
            raise ConfigError(
                f"--exchange {config.exchange} is about messages between hosts, but the transport "
                f"is {transport}; use --transport gloo or leave --exchange out"
            )
        return "auto", None
    if config.exchange != "auto":
        return config.exchange, None
    if len(shares) > 1 and any(len(share.instances) > 1 for share in shares):
        return "auto", None
    return "1pc", "exchange 1pc"
