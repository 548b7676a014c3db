"""What every runtime does: start worker processes, say which of them ended, stop them.

A runtime does not know what workers compute, who is in the pools, or what is said to workers:
control messages reach a worker by its name over the control channel, however it was started, so
posting them is `MessageRouter`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from janus_moe.errors import ServiceError


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker process to start.

    name: its name, by which control messages reach it.
    host: name of the host that is to run it.
    num_threads: compute threads of each of its instances.
    """

    name: str
    host: str
    num_threads: int


@dataclass(frozen=True, slots=True)
class WorkersLost:
    """Workers that ended unasked, or that nothing will be heard of any more.

    workers: their names.
    error: kind of error that it is to the service.
    sentence: what happened, e.g. `expert 1 (pid 7) was killed by SIGKILL`.
    spoke: they ended by themselves, after they had said why, which may not have been read yet.
    """

    workers: tuple[str, ...]
    error: type[ServiceError]
    sentence: str
    spoke: bool = False


@dataclass(frozen=True, slots=True)
class RuntimeFailed:
    """The runtime cannot start or keep its workers; `sentence` says why."""

    sentence: str


RuntimeEvent = WorkersLost | RuntimeFailed
OnRuntimeEvent = Callable[[RuntimeEvent], None]


class Runtime(Protocol):
    """Starts and ends the worker processes of one service. One asyncio loop uses it."""

    @property
    def pids(self) -> Mapping[str, int]:
        """Worker name, with its host where that is another one -> process id."""
        ...

    async def start(self, workers: Sequence[WorkerSpec], on_event: OnRuntimeEvent) -> None:
        """Starts workers; `on_event` is called with what happens to them from then on.

        May be called again, for further workers.
        """
        ...

    def kill(self, worker: str) -> None:
        """Ends one worker at once, whatever it is doing; its end is told as an event."""
        ...

    async def stop(self, grace_s: float, error: str | None) -> None:
        """Ends all workers, which have been told to stop; no event comes any more.

        grace_s: what they get to leave by themselves; then they are terminated, then killed.
        error: why the service ends; None when it was asked to.
        """
        ...
