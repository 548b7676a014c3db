"""What a worker process must know before it can ask the engine for its setup.

Light: a host that only starts workers does not load what they need.
"""

from __future__ import annotations

import msgspec


class Bootstrap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The argument on a worker's command line, as JSON; it holds no secret.

    name: the worker's name, its ZeroMQ identity.
    endpoint: ZeroMQ address of the engine.
    lifeline_fd: read end of the lifeline pipe, which the launcher fills in.
    parent_pid: the process that starts the worker, which the launcher fills in.
    secret_fd: a pipe with the cluster's secret; None where the endpoint is a socket of this host.
    heartbeat_fd: of the page on which it says what its threads are at, filled in likewise.
    bind_host: the only address at which the worker may listen.
    checkpoint: folder of the model on this host; None means the one in the setup.
    """

    name: str
    endpoint: str
    lifeline_fd: int = -1
    parent_pid: int = -1
    secret_fd: int | None = None
    heartbeat_fd: int = -1
    bind_host: str = "127.0.0.1"
    checkpoint: str | None = None
