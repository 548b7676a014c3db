"""`janus serve` as users start it: a process, its terminal output, its address, its children."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import psutil

START_TIMEOUT_S = 100.0


class ServerProcess:
    """One running `janus serve`; collects what it prints. prefix: runs it elsewhere."""

    def __init__(self, *arguments: str, prefix: Sequence[str] = ()) -> None:
        own = [sys.executable, "-m", "janus_moe.cli", "serve", "--port", "0"]
        command = [*prefix, *own, *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    @property
    def url(self) -> str:
        """http://127.0.0.1:PORT once it listens."""
        return self.wait_for(r"(http://[\d.]+:\d+)").group(1)

    def wait_until_ready(self) -> ServerProcess:
        self.wait_for(r"takes requests")
        return self

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first match in the output; fails when the process ends without it."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if match := re.search(pattern, self.output):
                return match
            if self.process.poll() is not None:
                self._reader.join(2)
                if match := re.search(pattern, self.output):
                    return match
                raise AssertionError(f"ended without {pattern!r}:\n{self.output}")
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} within {START_TIMEOUT_S} s:\n{self.output}")

    def workers(self) -> dict[str, psutil.Process]:
        """Worker processes by name, e.g. "expert 1"."""
        found: dict[str, psutil.Process] = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                match = re.search(r'"name":"([a-z]+(?: \d+)?)"', " ".join(child.cmdline()))
                if match:
                    found[match.group(1)] = child
        return found

    def wait_for_workers(self, count: int) -> dict[str, psutil.Process]:
        deadline = time.monotonic() + START_TIMEOUT_S
        while len(self.workers()) < count:
            assert time.monotonic() < deadline and self.process.poll() is None, self.output
            time.sleep(0.02)
        return self.workers()

    def wait_for_worker(self, name: str) -> psutil.Process:
        """The worker process of this name, as soon as there is one."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while name not in (workers := self.workers()):
            assert time.monotonic() < deadline and self.process.poll() is None, self.output
            time.sleep(0.05)
        return workers[name]

    def terminate(self, timeout_s: float = 30.0) -> int:
        """SIGTERM, then the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended(timeout_s)

    def ended(self, timeout_s: float) -> int:
        """Exit status; raises subprocess.TimeoutExpired when it has not ended by itself."""
        status = self.process.wait(timeout_s)
        self._reader.join(2)
        return status

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)


@contextlib.contextmanager
def serving(*arguments: str, prefix: Sequence[str] = ()) -> Iterator[ServerProcess]:
    """A server that is gone afterwards, with all its workers."""
    server = ServerProcess(*arguments, prefix=prefix)
    try:
        yield server
    finally:
        workers = list(server.workers().values()) if server.process.poll() is None else []
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        _, alive = psutil.wait_procs(workers, timeout=10)
        for worker in alive:
            worker.kill()
        assert not alive, f"workers outlived their server: {alive}"
