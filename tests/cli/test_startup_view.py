"""Claim: a start is never silent for long, in a terminal or in a log file."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from janus_moe import startup_view
from janus_moe.messages import Progress
from janus_moe.server.run import bind
from janus_moe.spec import InstanceId
from janus_moe.startup_view import StartupView

EXPERT = InstanceId("expert", 0)


class Log(io.StringIO):
    """A log that tells when a text has been written to it."""

    def __init__(self, wanted: str) -> None:
        super().__init__()
        self._wanted = wanted
        self.seen = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        if self._wanted in self.getvalue():
            self.seen.set()
        return written


def test_a_log_file_gets_a_line_while_kernels_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup_view, "LINE_EVERY_S", 0.05)
    log = Log("s so far")
    with StartupView(Console(file=log, width=80)) as view:
        view.progress(Progress(instance=EXPERT, stage="warm up"))
        view.progress(Progress(instance=EXPERT, stage="load", done_bytes=1))  # a slower worker
        assert log.seen.wait(10)
    lines = log.getvalue().splitlines()
    assert "warm up" in lines[0] and "compiling kernels" in lines[0]
    assert "warm up" in lines[-1] and "compiling kernels" in lines[-1]
    written = log.getvalue()
    time.sleep(0.2)
    assert log.getvalue() == written  # nothing more once it has ended


def test_a_terminal_gets_one_line_that_changes() -> None:
    log = Log("1 s so far")
    with StartupView(Console(file=log, width=80, force_terminal=True)) as view:
        view.progress(Progress(instance=EXPERT, stage="warm up"))
        assert log.seen.wait(10)
    text = log.getvalue()
    assert "0 s so far" in text and "\x1b[2K" in text  # erased and written again


def test_a_quick_start_prints_nothing_where_it_is_to_be_quiet() -> None:
    log = Log("")
    with StartupView(Console(file=log, width=80), quiet_s=60.0) as view:
        view.say("resolve", "...")
        view.progress(Progress(instance=EXPERT, stage="warm up"))
    assert log.getvalue() == ""


def test_a_taken_port_is_refused_before_anything_is_loaded() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "janus_moe.cli", "serve", "/no/such/model"]
        found = subprocess.run([*command, "--port", port], capture_output=True, text=True)
    assert (
        found.returncode == 1
        and f"choose another --port, e.g. --port {int(port) + 1}" in found.stderr
    )
    assert "/no/such/model" not in found.stderr
