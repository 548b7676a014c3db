"""A listening socket that a library opened in this process: found, and closed to new connections.

Gloo listens for as long as it lives, and keeps every connection that any process opens. Once all
peers are connected no other process has any business there, but gloo's socket is not ours to close:
a filter makes the kernel drop what arrives for it. This module knows nothing of gloo's peers.
"""

from __future__ import annotations

import ctypes
import os
import socket
from pathlib import Path

_DESCRIPTORS = Path("/proc/self/fd")
_SO_ATTACH_FILTER = 26  # of x86 and ARM; the socket module has no name for it
_DROP_ALL = (ctypes.c_uint64 * 1)(0x06)  # one instruction of classic BPF: return 0 bytes


class _Program(ctypes.Structure):
    """`struct sock_fprog` of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def drop_new_connections(published: bytes) -> int:
    """Drops every packet for listening sockets of this process; connections they have accepted go
    on. A process that connects from now on gets no answer.

    published: bytes with the addresses of those sockets as in memory (`struct sockaddr_in` and
    `sockaddr_in6`). Returns how many there are; 0 where the system does not list descriptors.
    Raises OSError where it has no filters.
    """
    paths = list(_DESCRIPTORS.iterdir()) if _DESCRIPTORS.is_dir() else []
    found = 0
    for descriptor in (int(path.name) for path in paths):
        candidate = _copy(descriptor)
        if candidate is None:
            continue
        with candidate:
            if _listens(candidate) and _in_memory(candidate) in published:
                _drop_all(candidate)
                found += 1
    return found


def _copy(descriptor: int) -> socket.socket | None:
    """Another descriptor of the same socket, which no other thread can close and use again for
    something else; None where it was no socket or is closed."""
    try:
        copy = os.dup(descriptor)
    except OSError:
        return None
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None


def _drop_all(listener: socket.socket) -> None:
    program = _Program(len(_DROP_ALL), ctypes.addressof(_DROP_ALL))
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, bytes(program))


def _listens(candidate: socket.socket) -> bool:
    is_tcp = candidate.type == socket.SOCK_STREAM and candidate.family in (
        socket.AF_INET,
        socket.AF_INET6,
    )
    return is_tcp and candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def _in_memory(listener: socket.socket) -> bytes:
    """Port and address as they follow each other in a socket address."""
    host, port = listener.getsockname()[:2]
    flow = b"" if listener.family == socket.AF_INET else bytes(4)
    address = socket.inet_pton(listener.family, host.partition("%")[0])
    return int(port).to_bytes(2, "big") + flow + address
