"""One shared secret, and the CURVE keys that engine and hosts derive from it.

ZeroMQ's CURVE (https://rfc.zeromq.org/spec/26/) authenticates both ends and encrypts everything
between them. Both know the secret, so each can compute the other's public key: nothing has to be
exchanged beforehand but the secret itself.
"""

from __future__ import annotations

import hashlib
import hmac
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
from zmq.utils import z85

from janus_moe.errors import ConfigError

MIN_BYTES = 16
MAX_BYTES = 4096
_SALT = b"janus-moe cluster 1"


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """Z85 texts. The engine is the CURVE server; all hosts and workers share the client's pair."""

    engine_public: bytes
    engine_secret: bytes
    client_public: bytes
    client_secret: bytes

    @classmethod
    def derive(cls, secret: bytes) -> CurveKeys:
        """The same keys from the same secret, everywhere."""
        engine = z85.encode(hkdf(secret, _SALT, b"engine", 32))
        client = z85.encode(hkdf(secret, _SALT, b"client", 32))
        return cls(zmq.curve_public(engine), engine, zmq.curve_public(client), client)

    def __repr__(self) -> str:
        return "CurveKeys(...)"  # never in a log

    def make_server(self, socket: zmq.Socket[Any]) -> None:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.engine_secret)

    def make_client(self, socket: zmq.Socket[Any]) -> None:
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.engine_public)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.client_public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.client_secret)


def require_curve() -> None:
    """Raises ConfigError when this ZeroMQ was built without CURVE."""
    if not zmq.has("curve"):
        raise ConfigError(
            f"this ZeroMQ ({zmq.zmq_version()}) was built without CURVE, so hosts cannot be "
            "authenticated; install the pyzmq wheel (pip install --force-reinstall pyzmq)"
        )


def read_secret(path: str, flag: str) -> bytes:
    """The secret in a file, without white space at its ends; raises ConfigError naming `flag`."""
    how_to = f"make one with `umask 077; openssl rand -hex 32 > {path}` and copy it to every host"
    file = Path(path).expanduser()
    try:
        mode = file.stat().st_mode
        content = file.read_bytes()[: MAX_BYTES + 1].strip()
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}; {how_to}") from None
    if mode & (stat.S_IRWXO):
        raise ConfigError(
            f"{flag} {path} is open to all users of this machine (mode {mode & 0o777:o}); "
            f"run `chmod 600 {path}`"
        )
    if not MIN_BYTES <= len(content) <= MAX_BYTES:
        raise ConfigError(
            f"{flag} {path} holds {len(content)} bytes, needed are {MIN_BYTES} to {MAX_BYTES}; "
            f"{how_to}"
        )
    return content


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256 (https://www.rfc-editor.org/rfc/rfc5869)."""
    key = hmac.digest(salt, secret, hashlib.sha256)
    output, block = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(key, block + info + bytes([counter]), hashlib.sha256)
        output += block
    return output[:length]
