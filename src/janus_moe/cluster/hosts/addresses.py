"""Addresses as people write them: `10.0.0.1:29500`, `node-a`, `[::1]:29500`."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from janus_moe.errors import ConfigError

DEFAULT_PORT = 29500


@dataclass(frozen=True, slots=True)
class Address:
    """host: a name or an IP address, without brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, flag: str) -> Address:
        """Raises ConfigError naming `flag`; the port may be left out."""
        bracketed = text.startswith("[")
        if bracketed:
            host, _, rest = text[1:].partition("]")
            port = rest.removeprefix(":")
        else:
            host, _, port = text.partition(":")
        try:
            number = int(port) if port else DEFAULT_PORT
        except ValueError:
            number = -1
        if not host or not 0 <= number <= 65535:
            raise ConfigError(f"{flag} {text}: write ADDRESS:PORT, such as 10.0.0.1:{DEFAULT_PORT}")
        return cls(host, number)

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.host

    def endpoint(self, port: str | None = None) -> str:
        """ZeroMQ's way of writing it."""
        host = f"[{self.host}]" if self.is_ipv6 else self.host
        return f"tcp://{host}:{port or self.port}"

    def __str__(self) -> str:
        return self.endpoint().removeprefix("tcp://")


def address_towards(peer: Address, flag: str) -> str:
    """The address that this host shows to `peer`; nothing is sent."""
    try:
        found = socket.getaddrinfo(peer.host, peer.port or 1, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, target = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigError(
            f"{flag} {peer}: {error.strerror}; check the address, or give --bind"
        ) from None


def require_own(host: str, flag: str) -> str:
    """`host` as an IP address at which this host can listen; raises ConfigError naming `flag`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"{flag} {host} is no address of this host ({error.strerror}); `ip address` lists them"
        ) from None
    if ipaddress.ip_address(address[0]).is_unspecified:
        raise ConfigError(
            f"{flag} {host} would listen everywhere; give the address that the other hosts see"
        )
    return str(address[0])
