"""Times operations in as many processes at once as a pool has instances on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Sequence
from statistics import mean

import msgspec

from janus_moe.errors import WorkerDied
from janus_moe.profiling.plan import Job, TimingTask

START_S, CELL_S = 600.0, 600.0
"""Longest waits for a process to load its weights, and to compile and time one operation."""


class TimedPool:
    """Processes that time the same operation at the same time."""

    def __init__(self, processes: Sequence[asyncio.subprocess.Process], name: str) -> None:
        self._processes = processes
        self._name = name

    async def seconds(self, cell: TimingTask) -> float:
        """Mean over the instances."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(cell) + b"\n")
        replies = [self.reply(process, CELL_S) for process in self._processes]
        return mean(map(float, await asyncio.gather(*replies)))

    async def reply(self, process: asyncio.subprocess.Process, timeout_s: float) -> str:
        """The next line of one process; raises WorkerDied when it ends or is late."""
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), timeout_s)
        except TimeoutError:
            raise WorkerDied(
                f"{self._name}, pid {process.pid}, was silent for {timeout_s:.0f} s"
            ) from None
        if not line:
            status = await process.wait()
            raise WorkerDied(
                f"{self._name}, pid {process.pid}, ended with status {status}; see its error above"
            )
        return line.decode().strip()


@contextlib.asynccontextmanager
async def timed_pool(jobs: Sequence[Job]) -> AsyncIterator[TimedPool]:
    """Processes with weights loaded; none is left behind."""
    processes = []
    threads = str(jobs[0].num_threads)
    environment = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "NUMBA_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "passive",
    }
    try:
        for _ in jobs:
            processes.append(
                await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "janus_moe.profiling.worker",
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    env={**os.environ, **environment},
                )
            )
        pool = TimedPool(processes, f"the process that times the {jobs[0].pool} side")
        for process, job in zip(processes, jobs, strict=True):
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(job) + b"\n")
        await asyncio.gather(*(pool.reply(process, START_S) for process in processes))
        yield pool
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for process in processes:
            await process.wait()
