"""What a worker process must know before it can ask the engine for its setup."""

from __future__ import annotations

import msgspec

from janus_moe.transport.shm import ShmAddress


class Bootstrap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Passed on the worker's command line as JSON; holds no secret.

    endpoint: ZeroMQ address of the engine. lifeline_fd: read end of the lifeline pipe.
    shm: inherited shared memory; None when all instances live in this worker (loopback).
    """

    name: str
    endpoint: str
    lifeline_fd: int
    shm: ShmAddress | None = None
