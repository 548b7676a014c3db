"""Workers on several hosts: children of this process here, of an agent on every other host."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from janus_moe.bundled import BUNDLED
from janus_moe.cluster.grace_periods import HOST_REPORT_S
from janus_moe.cluster.hosts.messages import StartHost, WorkerStart
from janus_moe.cluster.hosts.pool import HostPool
from janus_moe.cluster.hosts.shares import LOCAL
from janus_moe.cluster.runtime.base import OnRuntimeEvent, WorkerSpec
from janus_moe.cluster.runtime.local import LocalRuntime
from janus_moe.model.source import fingerprint


class JoinedHostsRuntime:
    """A `Runtime` over hosts that have joined.

    pool: the other hosts.
    local: starts the workers of this host.
    model: as in the settings; other hosts find it by themselves.
    folder: this host's copy of it.
    hang_timeout_s: what other hosts allow their workers, see `ProcessLauncher.spawn`.
    """

    def __init__(
        self, pool: HostPool, local: LocalRuntime, model: str, folder: Path, hang_timeout_s: float
    ) -> None:
        self._pool = pool
        self._local = local
        is_folder = model != BUNDLED and Path(model).expanduser().is_dir()
        self._model = str(folder.resolve()) if is_folder else model
        self._folder = folder
        self._hang_timeout_s = hang_timeout_s

    @property
    def pids(self) -> Mapping[str, int]:
        """Worker name, with its host where that is another one -> process id."""
        return {**self._local.pids, **self._pool.pids}

    async def start(self, workers: Sequence[WorkerSpec], on_event: OnRuntimeEvent) -> None:
        """See `Runtime`."""
        self._pool.watch(on_event)
        of_host: dict[str, list[WorkerSpec]] = {LOCAL: []}
        for worker in workers:
            of_host.setdefault(worker.host, []).append(worker)
        own = of_host.pop(LOCAL)
        print_of_model = fingerprint(self._folder) if of_host else ""
        for host, specs in of_host.items():
            starts = tuple(WorkerStart(name=s.name, num_threads=s.num_threads) for s in specs)
            part = StartHost(
                workers=starts,
                model=self._model,
                fingerprint=print_of_model,
                hang_timeout_s=self._hang_timeout_s,
            )
            self._pool.start(host, part)
        await self._local.start(own, on_event)

    def kill(self, worker: str) -> None:
        """See `Runtime`; only for workers of this host."""
        self._local.kill(worker)

    async def stop(self, grace_s: float, error: str | None) -> None:
        """See `Runtime`."""
        await asyncio.gather(
            self._local.stop(grace_s, error), self._pool.stop(error, 3 * grace_s + HOST_REPORT_S)
        )
