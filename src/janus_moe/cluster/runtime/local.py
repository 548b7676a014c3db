"""Workers as child processes of this one, on this host."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

from janus_moe.cluster.runtime.base import OnRuntimeEvent, WorkersLost, WorkerSpec
from janus_moe.cluster.runtime.processes import ProcessLauncher, WorkerProcess, end_processes
from janus_moe.cluster.worker.bootstrap import Bootstrap
from janus_moe.errors import WorkerDied

LOOPBACK_ADDRESS = "127.0.0.1"


class LocalRuntime:
    """A `Runtime` whose workers end with this process, however it ends.

    endpoint: ZeroMQ address of the engine.
    secret: what workers must know to get in; None where the endpoint is a socket of this host.
    bind_host: the only address that workers may listen at.
    hang_timeout_s: see `ProcessLauncher.spawn`.
    """

    def __init__(
        self,
        endpoint: str,
        secret: bytes | None = None,
        bind_host: str = LOOPBACK_ADDRESS,
        hang_timeout_s: float = 0.0,
    ) -> None:
        self._endpoint = endpoint
        self._bind_host = bind_host
        self._hang_timeout_s = hang_timeout_s
        self._launcher = ProcessLauncher(secret)
        self._workers: list[WorkerProcess] = []
        self._watchers: list[asyncio.Task[None]] = []
        self._stopping = False

    @property
    def pids(self) -> Mapping[str, int]:
        """Worker name -> process id."""
        return {worker.name: worker.process.pid for worker in self._workers}

    async def start(self, workers: Sequence[WorkerSpec], on_event: OnRuntimeEvent) -> None:
        """See `Runtime`."""
        for spec in workers:
            bootstrap = Bootstrap(
                name=spec.name,
                endpoint=self._endpoint,
                bind_host=self._bind_host,
            )
            worker = await self._launcher.spawn(bootstrap, spec.num_threads, self._hang_timeout_s)
            self._workers.append(worker)
            self._watchers.append(asyncio.create_task(self._watch(worker, on_event)))

    def kill(self, worker: str) -> None:
        """See `Runtime`."""
        for one in self._workers:
            if one.name == worker and one.process.returncode is None:
                one.process.kill()

    async def stop(self, grace_s: float, error: str | None) -> None:
        """See `Runtime`."""
        self._stopping = True
        await end_processes(self._workers, grace_s)
        self._launcher.close()
        for watcher in self._watchers:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def _watch(self, worker: WorkerProcess, on_event: OnRuntimeEvent) -> None:
        await worker.process.wait()
        if not self._stopping:
            sentence = f"{worker.title} {worker.how_it_ended()}"
            spoke = worker.exited_by_itself
            self._workers.remove(worker)
            on_event(WorkersLost((worker.name,), WorkerDied, sentence, spoke))
