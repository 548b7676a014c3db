"""A listening socket that a library opened in this process: found, and closed to newcomers.

Gloo listens for as long as it lives, and keeps every connection that a stranger opens. Once all
peers are connected nobody has any business there, but gloo's socket is not ours to close: a filter
makes the kernel drop what arrives for it. This module knows nothing of gloo's peers.
"""

from __future__ import annotations

import ctypes
import os
import socket
import stat
from pathlib import Path

_DESCRIPTORS = Path("/proc/self/fd")
_SO_ATTACH_FILTER = 26  # of x86 and ARM; the socket module has no name for it
_DROP_ALL = (ctypes.c_uint64 * 1)(0x06)  # one instruction of classic BPF: return 0 bytes


class _Program(ctypes.Structure):
    """`struct sock_fprog` of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def find_listeners(published: bytes) -> list[int]:
    """Descriptors of this process that listen at an address which `published` contains.

    published: bytes with socket addresses as in memory (`struct sockaddr_in` and `sockaddr_in6`).
    Empty where the system does not list descriptors.
    """
    paths = list(_DESCRIPTORS.iterdir()) if _DESCRIPTORS.is_dir() else []
    found = []
    for descriptor in (int(path.name) for path in paths):
        try:
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with socket.socket(fileno=os.dup(descriptor)) as copy:
                    if _listens(copy) and _in_memory(copy) in published:
                        found.append(descriptor)
        except OSError:
            continue  # closed meanwhile by another thread
    return found


def drop_newcomers(descriptor: int) -> None:
    """Drops every packet for a listening socket; connections it has accepted go on.

    Whoever connects from now on gets no answer. Raises OSError where the system has no filters.
    """
    program = _Program(len(_DROP_ALL), ctypes.addressof(_DROP_ALL))
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        copy.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, bytes(program))


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
