"""Claims about trouble on a network of real hosts (namespaces; needs root): whoever may not join is
told why; garbage on every listening port changes no token; a host that is cut off ends the service
within its deadline, with its name.

Run as a program inside a host, this file is a stranger with garbage (URL HOST:PORT,HOST:PORT...)
or a client with one stream (URL).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from benchmarks.support.hosts import Network, network, why_unavailable
from tests.e2e.server_process import ServerProcess, serving

ENDS_WITHIN_S = 20.0
HEARTBEAT_S = 2.0
NO_ANSWER_S = 0.3
EOF_S = 10.0
LISTEN = "0A"  # in /proc/net/tcp
PROMPTS = ("import os\n", "def main(", "class A")

needs_hosts = pytest.mark.skipif(
    why_unavailable() is not None, reason=f"no hosts here: {why_unavailable()}"
)


# --- a stranger's side --------------------------------------------------------------------------


def request_of(url: str, **settings: Any) -> urllib.request.Request:
    body = {"prompt": list(PROMPTS), "temperature": 0, "ignore_eos": True, **settings}
    headers = {"Content-Type": "application/json"}
    return urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)


def complete(url: str) -> list[str]:
    with urllib.request.urlopen(request_of(url, max_tokens=48), timeout=60) as response:
        return [choice["text"] for choice in json.load(response)["choices"]]


def reaction(address: str, content: bytes) -> str:
    """What a listener does with a connection that sends this and then waits."""
    host, port = address.split(":")
    try:
        stranger = socket.create_connection((host, int(port)), NO_ANSWER_S)
    except TimeoutError:
        return "no answer"
    stranger.settimeout(EOF_S)
    with stranger, contextlib.suppress(ConnectionError):
        try:
            stranger.sendall(content)
            while stranger.recv(4096):
                pass
        except TimeoutError:
            return "open"
    return "closed"


def throw(addresses: list[str], done: threading.Event) -> tuple[int, dict[str, set[str]]]:
    """Garbage for every port, in turns until `done`: (rounds, reactions by address)."""
    noise = random.Random(1)
    found: dict[str, set[str]] = {address: set() for address in addresses}
    rounds = 0
    with ThreadPoolExecutor(len(addresses)) as threads:
        while not done.is_set():
            contents = [b"\xff" * 64, b"\x16\x03\x01" + noise.randbytes(500), noise.randbytes(9000)]
            for content in contents:
                every = threads.map(lambda a, c=content: reaction(a, c + b"\r\n\r\n"), addresses)
                for address, what in zip(addresses, every, strict=True):
                    found[address].add(what)
            rounds += 1
    return rounds, found


def be_a_stranger(url: str, addresses: list[str]) -> dict[str, Any]:
    """Completions without and with garbage meanwhile."""
    quiet = complete(url)
    done = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        throwing = threads.submit(throw, addresses, done)
        noisy = complete(url)
        done.set()
        rounds, found = throwing.result()
    reactions = {address: sorted(what) for address, what in found.items()}
    return {"quiet": quiet, "noisy": noisy, "rounds": rounds, "reactions": reactions}


def stream(url: str) -> str:
    """Says when the first token is there; the last event."""
    last = ""
    with urllib.request.urlopen(request_of(url, max_tokens=900, stream=True), timeout=60) as events:
        for line in events:
            if not last:
                print("first", flush=True)
            last = line.decode() if line.strip() else last
    return last


# --- the test's side ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cluster:
    """Host 0: engine and attention 0; host 1, b: expert 0 and 1; host 2: nobody."""

    net: Network
    server: ServerProcess
    agent: subprocess.Popen[str]
    join: str

    def client(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """This file, run inside host 2."""
        command = [sys.executable, __file__, self.server.url, *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        started: subprocess.Popen[str] = self.net[2].popen(
            command, text=True, env=environment, **options
        )
        return started

    def listening(self) -> dict[str, str]:
        """HOST:PORT of every listener on all hosts -> what listens there."""
        named = {self.server.url.removeprefix("http://"): "http", self.join: "control"}
        found = {}
        for host in self.net:
            for line in host.run(["cat", "/proc/net/tcp"]).stdout.splitlines()[1:]:
                address, state = line.split()[1], line.split()[3]
                if state == LISTEN:
                    ip, port = (bytes.fromhex(part) for part in address.split(":"))
                    where = f"{socket.inet_ntoa(ip[::-1])}:{int.from_bytes(port, 'big')}"
                    found[where] = named.get(where, "gloo")
        return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    secret = secret_file(tmp_path_factory.mktemp("cluster") / "secret", "the one that all share")
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(network(3))
        flags = ["--hosts", "local=1A,b=2E", "--cluster-listen", f"{net[0].address}:0"]
        flags += ["--cluster-secret-file", str(secret), "--host", net[0].address]
        flags += ["--cluster-heartbeat-timeout", f"{HEARTBEAT_S}"]
        flags += ["--max-model-len", "1024", "--threads", "1"]
        server = stack.enter_context(serving(*flags, prefix=net[0].command([])))
        join = server.wait_for(r"--join ([\d.]+:\d+)").group(1)
        agent = worker(net, 1, join, "b", secret, "--heartbeat-timeout", f"{HEARTBEAT_S}")
        stack.callback(agent.wait)
        stack.callback(agent.kill)
        yield Cluster(net, server.wait_until_ready(), agent, join)


def secret_file(path: Path, content: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(content, encoding="utf-8")
    return path


def worker(
    net: Network, host: int, join: str, name: str, secret: Path, *flags: str
) -> subprocess.Popen[str]:
    command = ["worker", "--join", join, "--name", name, "--secret-file", str(secret), *flags]
    started: subprocess.Popen[str] = net[host].popen(
        [sys.executable, "-m", "janus_moe.cli", *command], stderr=subprocess.PIPE, text=True
    )
    return started


@pytest.mark.slow
@needs_hosts
def test_garbage_on_every_port_changes_no_token_and_the_unwanted_are_told_why(
    cluster: Cluster, tmp_path: Path
) -> None:
    net, listening = cluster.net, cluster.listening()
    assert sorted(listening.values()) == ["control", "gloo", "gloo", "gloo", "http"]
    assert {address.split(":")[0] for address in listening} == {net[0].address, net[1].address}
    other = secret_file(tmp_path / "other", "another secret, long enough")
    wrong = worker(net, 2, cluster.join, "b", other)
    nowhere = worker(net, 2, "10.77.0.99:29500", "b", other, "--join-timeout", "1")
    told, _ = cluster.client(",".join(listening), stdout=subprocess.PIPE).communicate(timeout=90)
    result = json.loads(told)
    assert result["noisy"] == result["quiet"]
    assert result["rounds"] >= 1
    for address, who in listening.items():
        expected = ["no answer"] if who == "gloo" else ["closed"]
        assert result["reactions"][address] == expected, (address, who)
    for refused, reason in ((wrong, "the secret differs"), (nowhere, "10.77.0.99:29500 cannot be")):
        _, output = refused.communicate(timeout=ENDS_WITHIN_S)
        assert refused.returncode == 1
        assert reason in output
    assert cluster.server.process.poll() is None
    assert cluster.agent.poll() is None


@pytest.mark.slow
@needs_hosts
def test_a_host_that_is_cut_off_in_the_middle_is_named_within_the_deadline(
    cluster: Cluster,
) -> None:
    server, agent = cluster.server, cluster.agent
    pids = (server.process.pid, agent.pid)
    processes = [p for pid in pids for p in psutil.Process(pid).children(recursive=True)]
    assert len(processes) == 3
    client = cluster.client(stdout=subprocess.PIPE)
    assert client.stdout is not None
    assert client.stdout.readline() == "first\n"
    cut = time.monotonic()
    cluster.net.cut(cluster.net[1])
    assert server.ended(ENDS_WITHIN_S) == 1
    assert time.monotonic() - cut < HEARTBEAT_S + 6.0
    message = server.output.splitlines()[-1]
    for words in ("host b (expert 0, expert 1)", "silent for 2 s", "while serving"):
        assert words in message
    _, output = agent.communicate(timeout=ENDS_WITHIN_S)
    assert agent.returncode == 1
    assert "closed the connection or was silent" in output
    last_event, _ = client.communicate(timeout=ENDS_WITHIN_S)
    assert "service_unavailable" in last_event, "a stream ends with an error, not with silence"
    _, alive = psutil.wait_procs(processes, timeout=ENDS_WITHIN_S)
    assert not alive


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(be_a_stranger(sys.argv[1], sys.argv[2].split(","))))
    else:
        print(stream(sys.argv[1]))
