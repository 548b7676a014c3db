"""Claims about a worker whose computing thread stands still: it is noticed soon, named and killed,
and the others go on."""

from __future__ import annotations

import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from tests.e2e.conftest import Model
from tests.e2e.server_process import serving
from tests.e2e.test_faults import flags, stream

ENDS_WITHIN_S = 10.0  # on a busy machine; what spins is given the time in which it had no core
IDLE_S = 10.0
STICKING = Path(__file__).parent / "sticking"


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("expert 1", "sleeps"),
        pytest.param("expert 1", "spins", marks=pytest.mark.slow),
        pytest.param("attention 0", "sleeps", marks=pytest.mark.slow),
        pytest.param("attention 0", "spins", marks=pytest.mark.slow),
    ],
)
def test_a_thread_that_stands_still_is_noticed(
    qwen3: Model, name: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = tmp_path / "stop"
    path = os.pathsep.join([str(STICKING), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("JANUS_TEST_STICKS", f"{name}:{how}:{stop}")
    with serving(*flags(qwen3)) as server:
        workers = server.wait_until_ready().workers()
        expected = stream(server.url)
        with ThreadPoolExecutor(1) as client:
            noticed = threading.Event()
            under_way = client.submit(streams, server.url, noticed)
            time.sleep(1.5)  # so that what a step takes is known
            stop.touch()
            try:
                server.wait_for(rf"{name} \(pid {workers[name].pid}\) stood still for [\d.]+ s")
            finally:
                noticed.set()
            _, alive = psutil.wait_procs([workers[name]], timeout=ENDS_WITHIN_S)
            assert not alive
            assert set(under_way.result(60)) == {expected}
        server.process.terminate()
        assert server.ended(ENDS_WITHIN_S) == 0


def streams(url: str, until: threading.Event) -> list[str]:
    """One after the other, and at least one after the event."""
    texts = []
    while not until.is_set():
        texts.append(stream(url))
    return [*texts, stream(url)]


def wake_ups(pid: int) -> int:
    """How often threads of a process went to sleep so far."""
    found = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        (line,) = re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", status.read_text(), re.MULTILINE)
        found += int(line)
    return found


@pytest.mark.slow
def test_an_idle_service_sleeps(qwen3: Model) -> None:
    """At most two wake-ups a second and process: heartbeats, and the look at them."""
    with serving(*flags(qwen3)) as server:
        workers = server.wait_until_ready().workers()
        assert "date" in httpx.get(f"{server.url}/health").headers
        pids = [server.process.pid, *(worker.pid for worker in workers.values())]
        time.sleep(2.0)
        before = [wake_ups(pid) for pid in pids]
        time.sleep(IDLE_S)
        found = [wake_ups(pid) - count for pid, count in zip(pids, before, strict=True)]
        assert max(found) <= 2 * IDLE_S + 2, found
