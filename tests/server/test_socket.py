"""On a real socket: streaming, disconnects, the official client, polite and impolite endings."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest
from tests.server.fake_engine import FakeEngine

from janus_moe.config import ServerConfig
from janus_moe.errors import ConfigError
from janus_moe.server.run import HttpServer, bind, run_server

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def serving(engine: FakeEngine, **settings: object) -> Iterator[str]:
    """The URL of a server that runs in a thread."""
    started = threading.Event()
    box: list[tuple[asyncio.AbstractEventLoop, HttpServer]] = []

    def note(server: HttpServer) -> None:
        box.append((asyncio.get_running_loop(), server))
        started.set()

    config = ServerConfig(port=0, **settings)  # type: ignore[arg-type]
    server = HttpServer(engine, config)
    thread = threading.Thread(target=lambda: asyncio.run(run_server(server, note)))
    thread.start()
    assert started.wait(10)
    loop, server = box[0]
    try:
        yield server.url
    finally:
        loop.call_soon_threadsafe(server.stop)
        thread.join(20)
        assert not thread.is_alive()


def eventually(condition: Callable[[], bool], within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_official_client(engine: FakeEngine) -> None:
    engine.reply = "the quick brown fox"
    with (
        serving(engine, api_key="k") as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client,
    ):
        assert [model.id for model in client.models.list()] == ["tiny-moe"]
        completion = client.completions.create(
            model="tiny-moe", prompt="hello", max_tokens=99, logprobs=2, echo=True
        )
        assert completion.choices[0].text == "hellothe quick brown fox"
        assert completion.choices[0].logprobs is not None
        chat = client.chat.completions.create(
            model="tiny-moe",
            messages=[{"role": "user", "content": "hello"}],
            logprobs=True,
            top_logprobs=1,
            n=2,
        )
        assert [choice.message.content for choice in chat.choices] == [engine.reply] * 2
        assert chat.usage is not None
        assert chat.usage.prompt_tokens_details is not None
        assert chat.usage.prompt_tokens_details.cached_tokens == 3
        with client.chat.completions.create(
            model="tiny-moe",
            messages=[{"role": "user", "content": "hello"}],
            stream=True,
            stream_options={"include_usage": True},
        ) as stream:
            events = list(stream)
        text = "".join(e.choices[0].delta.content or "" for e in events if e.choices)
        assert text == engine.reply
        assert events[0].choices[0].delta.role == "assistant"
        assert events[-1].usage is not None
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.completions.create(model="tiny-moe", prompt="a", temperature=3)
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="other", prompt="a")
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="x").models.list()


def test_official_client_sees_an_error_in_mid_stream(engine: FakeEngine) -> None:
    engine.fail_after = 2
    with (
        serving(engine) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client,
    ):
        stream = client.completions.create(model="tiny-moe", prompt="a", stream=True)
        with pytest.raises(openai.APIError, match="internal server error"):
            list(stream)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_aborts_its_requests(engine: FakeEngine, streaming: bool) -> None:
    engine.token_delay_s = 0.02
    body = json.dumps(
        {"prompt": ["a", "b"], "n": 2, "max_tokens": 500, "stream": streaming}
    ).encode()
    with serving(engine) as url:
        host, port = url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert eventually(lambda: len(engine.running) == 4)
        if streaming:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        connection.close()
        left_at = time.monotonic()
        assert eventually(lambda: len(engine.aborted) == 4)
        assert time.monotonic() - left_at < 0.5
        assert engine.running == set()


def test_events_arrive_one_by_one(engine: FakeEngine) -> None:
    engine.token_delay_s = 0.05
    arrivals = []
    body = {"prompt": "a", "stream": True, "max_tokens": 6, "return_token_ids": True}
    with (
        serving(engine) as url,
        httpx.stream("POST", f"{url}/v1/completions", json=body) as response,
    ):
        for line in response.iter_lines():
            if line.startswith("data: {"):
                arrivals.append(time.monotonic())
    assert len(arrivals) == 6
    assert arrivals[-1] - arrivals[0] > 0.15


def test_garbage_does_not_harm_the_server(engine: FakeEngine) -> None:
    with serving(engine) as url:
        host, port = url.removeprefix("http://").split(":")
        for garbage in (b"\x00" * 1000, b"GET " + b"x" * 200_000, b"POST / HTTP/9.9\r\n\r\n"):
            connection = socket.create_connection((host, int(port)), timeout=5)
            with connection, contextlib.suppress(OSError):
                connection.sendall(garbage)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1000):
                    pass
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_head_request_gets_the_headers_alone(engine: FakeEngine) -> None:
    """On one connection: a body would be read as the next answer."""
    with serving(engine) as url, httpx.Client() as client:
        for _ in range(3):
            head = client.head(f"{url}/health")
            assert head.status_code == 200 and head.content == b""
        assert client.get(f"{url}/health").json() == {"status": "ready"}
        assert client.head(f"{url}/v1/completions").status_code == 405


def test_unfinished_requests_end_with_the_patience(engine: FakeEngine) -> None:
    engine.token_delay_s = 0.05
    answers: list[httpx.Response] = []

    def ask(url: str, streaming: bool) -> None:
        body = {"prompt": "a", "max_tokens": 500, "stream": streaming}
        answers.append(httpx.post(f"{url}/v1/completions", json=body, timeout=20))

    with serving(engine, shutdown_timeout=0.3) as url:
        threads = [
            threading.Thread(target=ask, args=(url, streaming)) for streaming in (False, True)
        ]
        for thread in threads:
            thread.start()
        assert eventually(lambda: len(engine.running) == 2)
    for thread in threads:
        thread.join(10)
    plain, stream = sorted(answers, key=lambda answer: answer.status_code, reverse=True)
    assert plain.status_code == 503
    assert '"code":"unavailable"' in stream.text.rstrip().split("\n\n")[-1]
    assert len(engine.aborted) == 2


def test_taken_port_is_a_setting_to_change(engine: FakeEngine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port + 1}"):
            HttpServer(engine, ServerConfig(port=port))


def test_a_bound_port_is_refused_to_others_at_once() -> None:
    with bind("127.0.0.1", 0) as taken, pytest.raises(ConfigError, match="in use"):
        bind("127.0.0.1", taken.getsockname()[1])


def test_make_is_told_how_to_choose_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKELEVEL", "1")
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"make serve PORT={port + 1}"):
            bind("127.0.0.1", port)


async def test_signals_say_what_happens(engine: FakeEngine) -> None:
    said: list[str] = []
    server = HttpServer(engine, ServerConfig(port=0, shutdown_timeout=7), say=said.append)
    running = asyncio.create_task(server.run())
    server.state.lifecycle.enter()
    server.stop()
    server.stop()
    server.state.lifecycle.leave()
    await running
    assert said == [
        "finishing 1 request, up to 7 s; Ctrl-C again ends them at once",
        "ending 1 request at once",
    ]


@contextlib.contextmanager
def server_process(tokenizer_folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.server.serve_fake", str(tokenizer_folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://")
        yield process, url
    finally:
        process.kill()
        process.communicate()


def become_ready(process: subprocess.Popen[str], url: str) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert eventually(lambda: httpx.get(f"{url}/health").status_code == 200)


def start_stream(client: httpx.Client, url: str, max_tokens: int) -> Iterator[str]:
    body = {"prompt": "a", "stream": True, "max_tokens": max_tokens, "return_token_ids": True}
    with client.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as response:
        yield from (line for line in response.iter_lines() if line)


def test_first_signal_finishes_what_is_under_way(tokenizer_folder: Path) -> None:
    with server_process(tokenizer_folder) as (process, url), httpx.Client() as client:
        loading = httpx.get(f"{url}/health")
        assert loading.status_code == 503
        assert loading.json()["status"] == "loading"
        become_ready(process, url)
        stream = start_stream(client, url, max_tokens=40)
        lines = [next(stream)]
        process.send_signal(signal.SIGTERM)
        assert eventually(lambda: httpx.get(f"{url}/health").status_code == 503)
        assert httpx.get(f"{url}/health").json() == {"status": "draining"}
        refused = httpx.post(f"{url}/v1/completions", json={"prompt": "a"})
        assert refused.status_code == 503
        lines += stream
        assert len(lines) == 41
        assert lines[-1] == "data: [DONE]"
        assert process.wait(10) == 0


def test_second_signal_ends_at_once(tokenizer_folder: Path) -> None:
    with server_process(tokenizer_folder) as (process, url), httpx.Client() as client:
        become_ready(process, url)
        stream = start_stream(client, url, max_tokens=4000)
        next(stream)
        process.send_signal(signal.SIGINT)
        assert eventually(lambda: httpx.get(f"{url}/health").status_code == 503)
        process.send_signal(signal.SIGINT)
        assert process.wait(8) == 0
        with contextlib.suppress(httpx.HTTPError):
            list(stream)
