"""Claims about losing a process: the service goes on where each instance has a process of its own,
and says which worker it was. Where it cannot go on it ends by itself within 5 s, and leaves nothing
behind."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from tests.e2e.conftest import Model
from tests.e2e.server_process import ServerProcess, serving

ENDS_WITHIN_S = 5.0
TOKENS = 180
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Temporary files of other services on this machine are not counted; short, for sockets."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield


def leftovers() -> set[str]:
    """Named segments that Python, torch or we could have made, and our control sockets."""
    found = {p.name for p in Path(tempfile.gettempdir()).glob("janus-*")}
    for prefix in ("janus", "psm_", "torch_"):
        found |= {p.name for p in SHARED_MEMORY.glob(f"{prefix}*")}
    return found


def flags(model: Model) -> list[str]:
    return [str(model.folder), "--expert-instances", "2", "--max-model-len", "200"]


def assert_ends(
    server: ServerProcess, name: str, workers: list[psutil.Process], how: str = "SIGKILL"
) -> None:
    """The service ends in time, names the worker, and every process of it is gone."""
    start = time.monotonic()
    assert server.ended(ENDS_WITHIN_S) == 1
    assert time.monotonic() - start < ENDS_WITHIN_S
    assert name in server.output
    assert how in server.output
    _, alive = psutil.wait_procs(workers, timeout=2)
    assert not alive


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention 0", "expert 1"])
@pytest.mark.parametrize("how", ["SIGKILL", "was stopped by a signal"])
@pytest.mark.parametrize("idle", [False, True])
def test_the_service_outlives_a_worker(qwen3: Model, name: str, how: str, idle: bool) -> None:
    """Streams go on with the tokens that they would have had; another instance takes its place."""
    before = leftovers()
    with serving(*flags(qwen3)) as server:
        workers = server.wait_until_ready().workers()
        expected = stream(server.url)
        with ThreadPoolExecutor(4) as clients:
            streams = [] if idle else [clients.submit(stream, server.url) for _ in range(4)]
            time.sleep(0.3)
            if how == "SIGKILL":
                workers[name].kill()
            else:
                workers[name].suspend()
            assert all(tokens.result(60) == expected for tokens in streams)
        successor = name.partition(" ")[0] + (" 1" if name == "attention 0" else " 2")
        server.wait_for_worker(successor)
        assert stream(server.url) == expected
        _, alive = psutil.wait_procs([workers[name]], timeout=2)
        assert not alive
        server.process.terminate()
        assert server.ended(ENDS_WITHIN_S) == 0
        assert name in server.output
        assert how in server.output
    assert leftovers() == before


def test_the_only_worker_of_a_service_lost(qwen3: Model) -> None:
    before = leftovers()
    with serving(str(qwen3.folder), "--transport", "loopback", "--max-model-len", "200") as server:
        server.wait_until_ready()
        workers = server.workers()
        errors: list[str] = []
        client = threading.Thread(target=stream_until_error, args=(server.url, errors))
        client.start()
        time.sleep(0.3)
        workers["janus"].kill()
        assert_ends(server, "janus", list(workers.values()))
        client.join(5)
        assert not client.is_alive()
        assert errors, "the open stream must end with an error, not with silence"
    assert leftovers() == before


def test_worker_lost_while_starting(qwen3: Model) -> None:
    before = leftovers()
    with serving(*flags(qwen3)) as server:
        workers = server.wait_for_workers(3)
        workers["expert 0"].kill()
        assert_ends(server, "expert 0", list(workers.values()))
    assert leftovers() == before


@pytest.mark.slow
def test_a_peer_that_does_not_answer_is_replaced(qwen3: Model) -> None:
    """A worker that hangs is not dead, but its peers' deadline is."""
    with serving(*flags(qwen3), "--exchange-timeout", "1", "--hang-timeout", "0") as server:
        workers = server.wait_until_ready().workers()
        expected = stream(server.url)
        workers["expert 1"].suspend()
        assert stream(server.url) == expected
        server.wait_for_worker("expert 2")
        server.process.terminate()
        assert server.ended(ENDS_WITHIN_S) == 0
        for word in ("attention 0 lost expert 1", str(workers["expert 1"].pid), "reply", "layer"):
            assert word in server.output


@pytest.mark.parametrize(
    "stopped",
    [
        None,
        pytest.param("engine", marks=pytest.mark.slow),
        pytest.param("attention 0", marks=pytest.mark.slow),
        "expert 1",
    ],
)
def test_server_killed_leaves_no_worker(qwen3: Model, stopped: str | None) -> None:
    """Whatever state it or a worker is in: a stopped engine does not read what workers send."""
    before = leftovers()
    with serving(*flags(qwen3)) as server:
        workers = server.wait_until_ready().workers()
        assert len(workers) == 3
        client = threading.Thread(target=stream_until_error, args=(server.url, []))
        client.start()
        time.sleep(0.2)
        if stopped is not None:
            {**workers, "engine": psutil.Process(server.process.pid)}[stopped].suspend()
            time.sleep(0.3)
        server.process.kill()
        _, alive = psutil.wait_procs(list(workers.values()), timeout=ENDS_WITHIN_S)
        assert not alive
        client.join(ENDS_WITHIN_S)
    assert leftovers() == before


def stream(url: str) -> str:
    """The text of one completion, token by token; raises what ends it early."""
    body = {"prompt": "a", "max_tokens": TOKENS, "temperature": 0, "stream": True}
    text, ended = "", False
    with httpx.stream(
        "POST", f"{url}/v1/completions", json=body | {"ignore_eos": True}, timeout=60
    ) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            data = line.removeprefix("data: ")
            if data.startswith("{"):
                text += json.loads(data)["choices"][0]["text"]
            ended = ended or data == "[DONE]"
    assert ended
    return text


def stream_until_error(url: str, errors: list[str]) -> None:
    """Streams completions until one ends with an error."""
    for _ in range(50):
        try:
            body = {"prompt": "a", "max_tokens": 180, "stream": True, "ignore_eos": True}
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=20) as response:
                for line in response.iter_lines():
                    data = line.removeprefix("data: ")
                    if data.startswith("{") and "error" in json.loads(data):
                        errors.append(data)
                        return
                if response.status_code != 200:
                    errors.append(str(response.status_code))
                    return
        except httpx.HTTPError as error:
            errors.append(type(error).__name__)
            return
