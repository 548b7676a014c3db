"""Control messages between the engine and its hosts; workers have `janus_moe.messages`."""

from __future__ import annotations

import msgspec

from janus_moe.messages import Message

# --- host -> engine ---------------------------------------------------------------------------


class JoinHost(Message, frozen=True, forbid_unknown_fields=False):
    """A host offers itself. free_bytes: memory available.

    Fields are only ever added, so that another version is told apart by `version` and refused with
    a reason.
    """

    name: str
    version: str
    cores: int = 1
    free_bytes: int = 0


class HostStarted(Message, frozen=True):
    """The workers are running; pids by worker name."""

    pids: dict[str, int]


class HostFailed(Message, frozen=True):
    """The host cannot do, or go on doing, its part; `error` is a sentence for people."""

    error: str


class WorkerEnded(Message, frozen=True):
    """A worker process ended that had not been told to stop.

    how: "was killed by SIGKILL", ...
    spoke: it exited by itself, after it had said why.
    """

    name: str
    pid: int
    how: str
    spoke: bool = False


class HostStopped(Message, frozen=True):
    """After `StopHost`: every worker of the host is gone."""


# --- engine -> host ---------------------------------------------------------------------------


class Welcome(Message, frozen=True):
    """The host has joined; its part follows once all hosts have."""


class RefuseHost(Message, frozen=True):
    """The host may not join; `reason` is a sentence for people."""

    reason: str


class WorkerStart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One worker process to start."""

    name: str
    num_threads: int


class StartHost(Message, frozen=True):
    """The host's part.

    model: name or absolute folder, which the host finds by itself.
    fingerprint: of the engine's copy, see `model.source`.
    hang_timeout_s: how long a worker may be silent at most; 0 means that none is watched.
    """

    workers: tuple[WorkerStart, ...]
    model: str
    fingerprint: str
    hang_timeout_s: float = 0.0


class Ping(Message, frozen=True):
    """Not answered: where the connection is gone, sending it fails."""


class StopHost(Message, frozen=True):
    """Stop the workers and leave. error: why the service ended, when not by request."""

    error: str | None = None


ToHost = Welcome | RefuseHost | StartHost | Ping | StopHost
FromHost = JoinHost | HostStarted | HostFailed | WorkerEnded | HostStopped


def decode_to_host(data: bytes) -> ToHost:
    """Strict decoding on a host's side; raises msgspec.DecodeError on anything else."""
    message: ToHost = msgspec.msgpack.decode(data, type=ToHost)
    return message


def decode_from_host(data: bytes) -> FromHost:
    """Strict decoding on the engine's side; raises msgspec.DecodeError on anything else."""
    message: FromHost = msgspec.msgpack.decode(data, type=FromHost)
    return message
