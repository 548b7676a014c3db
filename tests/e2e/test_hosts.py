"""Claims about a service on several hosts, as processes with addresses of their own: the tokens of
one host; and whoever is killed, everybody ends, says who it was, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from tests.e2e.harness import complete, running_in_threads
from tests.e2e.server_process import ServerProcess, serving

from janus_moe.engine.text.tokenizer import load_tokenizer
from janus_moe.model.source import resolve_model

ENDS_WITHIN_S = 20.0
FLAGS = ("--max-model-len", "256", "--threads", "1")
PROMPTS = ("import os\n", "def main(", "for i in range(10):\n    print(i)\n", "class A")
NUM_TOKENS = 24


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cluster") / "secret"
    path.write_text("a secret of sufficient length\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """What one host says."""
    return asyncio.run(_on_one_host())


async def _on_one_host() -> list[str]:
    folder = resolve_model("bundled")
    tokenizer = load_tokenizer(folder)
    results = []
    async with running_in_threads(folder, max_model_len=256, threads=1) as engine:
        for prompt in PROMPTS:
            completion = await complete(
                engine,
                prompt,
                tokenizer.encode(prompt),
                max_tokens=NUM_TOKENS,
                temperature=0.0,
                ignore_eos=True,
            )
            results.append(completion.text)
    return results


def completions(server: ServerProcess) -> list[str]:
    body = {
        "prompt": list(PROMPTS),
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
    return [choice["text"] for choice in answer["choices"]]


class Agent:
    """`janus worker` as users start it."""

    def __init__(self, server: ServerProcess, name: str, secret: Path, bind: str) -> None:
        address = server.wait_for(r"--join (127\.0\.0\.1:\d+)").group(1)
        command = ["worker", "--join", address, "--name", name, "--bind", bind]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "janus_moe.cli", *command, "--secret-file", str(secret)],
            stderr=subprocess.PIPE,
            text=True,
        )

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def ended(self) -> tuple[int, str]:
        """(exit status, what it said); raises TimeoutExpired when it has not ended by itself."""
        _, output = self.process.communicate(timeout=ENDS_WITHIN_S)
        return self.process.returncode, output


@contextlib.contextmanager
def cluster(secret: Path, hosts: str, **binds: str) -> Iterator[tuple[ServerProcess, list[Agent]]]:
    """A service that is ready; agents of all names in `binds`, each at its own address."""
    listen = ("--cluster-listen", "127.0.0.1:0", "--cluster-secret-file", str(secret))
    agents: list[Agent] = []
    with serving("--hosts", hosts, *listen, *FLAGS) as server:
        try:
            agents += [Agent(server, name, secret, bind) for name, bind in binds.items()]
            yield server.wait_until_ready(), agents
        finally:
            for agent in agents:
                if agent.process.poll() is None:
                    agent.process.kill()
                    agent.process.communicate()


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=ENDS_WITHIN_S)
    assert not alive


def test_two_hosts_give_the_tokens_of_one_and_end_with_the_engine(
    secret: Path, expected: list[str]
) -> None:
    with cluster(secret, "local=1A,b=2E", b="127.0.0.2") as (server, (agent,)):
        assert completions(server) == expected
        workers = agent.workers()
        assert len(workers) == 2
        listening = {
            connection.laddr.ip
            for worker in workers
            for connection in worker.net_connections()
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening <= {"127.0.0.2"}, "workers listen at --bind and nowhere else"
        own = list(server.workers().values())
        server.process.kill()
        status, output = agent.ended()
        assert status == 1
        assert "the engine at tcp://127.0.0.1" in output
        assert_gone([*workers, *own])


@pytest.mark.slow
def test_a_killed_host_is_named_with_its_instances(secret: Path, expected: list[str]) -> None:
    binds = {"a": "127.0.0.2", "b": "127.0.0.3"}
    with cluster(secret, "a,b", **binds) as (server, (first, second)):
        assert completions(server) == expected
        workers = [*first.workers(), *second.workers()]
        assert len(workers) == 2
        second.process.kill()
        assert server.ended(ENDS_WITHIN_S) == 1
        message = server.output.splitlines()[-1]
        assert "host b (expert 0) closed its connection" in message
        assert "while serving; attention 0 saw: expert 0 (pid " in message
        assert "is gone: its connection closed (stage " in message and "layer " in message
        status, output = first.ended()
        assert status == 1
        assert "the service ended: host b (expert 0)" in output
        assert_gone(workers)


@pytest.mark.slow
def test_gloo_on_one_host_gives_the_same_tokens(expected: list[str]) -> None:
    pools = ("--attention-instances", "2", "--expert-instances", "2")
    with serving("--transport", "gloo", *pools, *FLAGS) as server:
        assert completions(server.wait_until_ready()) == expected
        assert server.terminate() == 0
