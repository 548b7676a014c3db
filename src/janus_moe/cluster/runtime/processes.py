"""Starting worker processes on this host, and making sure none is left behind or lost unnoticed.

A worker inherits exactly the file descriptors it needs: the lifeline, the page of its heartbeat,
and in a cluster a pipe with the secret. It is told everything else by message.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from janus_moe.cluster.heartbeat_page import HeartbeatPage
from janus_moe.cluster.watching import Watcher
from janus_moe.cluster.worker.bootstrap import Bootstrap


@dataclass(slots=True)
class WorkerProcess:
    """One started worker.

    killed_because: why it was taken for lost while it lived, as the rest of a sentence; "" if not.
    """

    name: str
    process: asyncio.subprocess.Process
    killed_because: str = ""

    @property
    def title(self) -> str:
        return f"{self.name} (pid {self.process.pid})"

    @property
    def exited_by_itself(self) -> bool:
        """It had time for last words: no signal ended it."""
        return self.process.returncode is not None and self.process.returncode >= 0

    def how_it_ended(self) -> str:
        """e.g. `was killed by SIGKILL` or `exited with status 1`."""
        code = self.process.returncode
        if code is None:
            return "is running"
        if self.killed_because:
            return f"{self.killed_because}, so it was killed"
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"exited with status {code}"


class ProcessLauncher:
    """Spawns workers as child processes that end when this process does.

    A worker that is lost although it lives is killed, so that it never speaks again; how it ended
    says why.

    secret: what workers must know to reach the engine; None for nothing.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = secret
        self._workers: dict[str, WorkerProcess] = {}
        self._watcher = Watcher(self._kill)
        self._lifeline_read, self._lifeline_write = os.pipe()

    async def spawn(
        self, bootstrap: Bootstrap, num_threads: int, hang_timeout_s: float
    ) -> WorkerProcess:
        """Starts one worker; what ties its life to this process is filled in here.

        The kernel kills the worker when the calling thread ends, so that thread must outlive it.

        hang_timeout_s: how long it may be silent at most; 0 means that it is not watched.
        """
        secret_fd = None if self._secret is None else _pipe_holding(self._secret)
        page_fd = HeartbeatPage.create()
        bootstrap = msgspec.structs.replace(
            bootstrap,
            lifeline_fd=self._lifeline_read,
            parent_pid=os.getpid(),
            secret_fd=secret_fd,
            heartbeat_fd=page_fd,
        )
        own = (page_fd,) if secret_fd is None else (page_fd, secret_fd)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "janus_moe.cluster.worker",
                msgspec.json.encode(bootstrap).decode(),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(self._lifeline_read, *own),
                env={**os.environ, **worker_environment(num_threads)},
                start_new_session=True,  # Ctrl-C goes to the engine, which drains first
            )
            page = HeartbeatPage(page_fd)
        finally:
            for descriptor in own:
                os.close(descriptor)
        worker = WorkerProcess(name=bootstrap.name, process=process)
        self._workers[worker.name] = worker
        if hang_timeout_s:
            self._watcher.watch(worker.name, process.pid, page, hang_timeout_s)
        else:
            page.close()
        return worker

    def _kill(self, name: str, reason: str) -> None:
        worker = self._workers[name]
        if worker.process.returncode is None:
            worker.killed_because = reason
            worker.process.kill()

    def close(self) -> None:
        """Cuts the lifeline: every worker still there leaves at once."""
        self._watcher.close()
        for fd in (self._lifeline_write, self._lifeline_read):
            os.close(fd)


def worker_environment(num_threads: int) -> dict[str, str]:
    """Variables for the libraries of a worker. A thread that spins for long starves the other pool,
    and one that sleeps at once wakes late for the next kernel: so they spin for some 20 us. Weights
    lie in huge pages where the system has them: streaming them is some 10 % faster."""
    threads = str(num_threads)
    return {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "NUMBA_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "1000",
        "THP_MEM_ALLOC_ENABLE": "1",  # torch's allocator
        "TOKENIZERS_PARALLELISM": "false",
    }


def _pipe_holding(content: bytes) -> int:
    """The read end of a pipe with `content` (less than a pipe's 64 KiB) and nothing after it."""
    read_fd, write_fd = os.pipe()
    os.write(write_fd, content)
    os.close(write_fd)
    return read_fd


async def end_processes(workers: Sequence[WorkerProcess], grace_s: float) -> None:
    """Waits for the workers to leave, then terminates, then kills those that do not."""
    for act in (None, signal.SIGTERM, signal.SIGKILL):
        remaining = [w for w in workers if w.process.returncode is None]
        if act is not None:
            for worker in remaining:
                worker.process.send_signal(act)
        waits = [asyncio.create_task(worker.process.wait()) for worker in remaining]
        if waits:
            _, late = await asyncio.wait(waits, timeout=grace_s)
            for wait in late:
                wait.cancel()
