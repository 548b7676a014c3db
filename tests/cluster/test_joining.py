"""Claims about getting into a cluster: only with the secret, with a reason otherwise, within a
deadline; and whatever else knocks at the port disturbs nobody. The loss of a host is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from janus_moe import __version__
from janus_moe.cluster.control_channel import ControlChannel
from janus_moe.cluster.hosts import agent
from janus_moe.cluster.hosts.addresses import Address
from janus_moe.cluster.hosts.agent import AgentSettings, run_agent
from janus_moe.cluster.hosts.messages import StartHost
from janus_moe.cluster.hosts.pool import HostPool
from janus_moe.cluster.hosts.secret import CurveKeys, hkdf, read_secret
from janus_moe.cluster.runtime.base import RuntimeEvent
from janus_moe.cluster.worker.bootstrap import Bootstrap
from janus_moe.cluster.worker.worker_channel import WorkerChannel
from janus_moe.errors import ConfigError, HostLost, WorkerFailed
from janus_moe.messages import Hello, StorePut, decode_from_worker

SECRET = b"correct horse battery staple"
HEARTBEAT_S = 1.0
DEADLINE_S = 20.0


class Cluster:
    """A pool that waits for hosts a and b, and agents as tasks of this process."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.said: list[str] = []
        self.losses: list[RuntimeEvent] = []
        channel = ControlChannel.listen(Address("127.0.0.1", 0), SECRET, HEARTBEAT_S)
        self.pool = HostPool(channel, ["a", "b"], HEARTBEAT_S, self.notes.append)
        self.address = Address.parse(channel.endpoint.removeprefix("tcp://"), "--join")
        self._tasks: list[asyncio.Task[None]] = []

    def agent(self, name: str, secret: bytes = SECRET, **settings: Any) -> asyncio.Task[None]:
        chosen = {"engine": self.address, "bind_host": "127.0.0.1", **settings}
        whole = AgentSettings(name=name, secret=secret, **chosen)
        task = asyncio.create_task(run_agent(whole, self.said.append))
        self._tasks.append(task)
        return task

    async def both_join(self) -> None:
        await self.pool.joined(DEADLINE_S)
        self.pool.watch(self.losses.append)

    async def wait_for_loss(self) -> RuntimeEvent:
        receiving = asyncio.create_task(self.receive())
        async with asyncio.timeout(DEADLINE_S):
            while not self.losses:
                await asyncio.sleep(0.01)
        receiving.cancel()
        return self.losses[0]

    async def receive(self) -> None:
        while True:
            self.pool.handle(*await self.pool.channel.receive())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.pool.stop(None, 0.0)
        self.pool.channel.close()


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    yield made
    await made.close()


async def outcome(task: asyncio.Task[None]) -> str:
    """What an agent ended with."""
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises((HostLost, WorkerFailed)) as caught:
            await task
    return str(caught.value)


async def test_hosts_with_the_secret_join_and_say_what_they_have(cluster: Cluster) -> None:
    cluster.agent("b")
    cluster.agent("a")
    facts = await cluster.pool.joined(DEADLINE_S)
    assert sorted(facts) == ["a", "b"]
    assert all(fact.cores >= 1 and fact.free_bytes > 0 for fact in facts.values())
    assert any("waiting for a" in note or "waiting for b" in note for note in cluster.notes)


async def test_hosts_end_quietly_when_the_engine_is_asked_to_stop(cluster: Cluster) -> None:
    agents = [cluster.agent("a"), cluster.agent("b")]
    await cluster.both_join()
    receiving = asyncio.create_task(cluster.receive())
    await cluster.pool.stop(None, DEADLINE_S)
    receiving.cancel()
    async with asyncio.timeout(DEADLINE_S):
        assert await asyncio.gather(*agents) == [None, None]


async def test_a_wrong_secret_is_told_apart_from_an_unreachable_engine(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    wrong = cluster.agent("a", secret=b"another secret, long enough")
    assert "secret differs" in await outcome(wrong)
    async with asyncio.timeout(DEADLINE_S):
        while "secret differs" not in caplog.text:
            await asyncio.sleep(0.01)
    nobody = Address("127.0.0.1", 1)
    unreachable = cluster.agent("a", engine=nobody, join_timeout_s=0.2)
    message = await outcome(unreachable)
    assert "127.0.0.1:1 cannot be reached" in message
    assert "0.2 s" in message
    with pytest.raises(HostLost, match="a, b did not join within"):
        await cluster.pool.joined(0.2)


async def test_something_else_at_the_address_is_said(cluster: Cluster) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    engine = Address("127.0.0.1", server.sockets[0].getsockname()[1])
    stray = cluster.agent("a", engine=engine, join_timeout_s=0.3)
    assert "no Janus engine" in await outcome(stray)
    server.close()


async def test_a_refusal_has_a_reason_on_both_sides(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "__version__", "9.9.9")
    other_version = cluster.agent("a")
    joined = asyncio.create_task(cluster.pool.joined(DEADLINE_S))
    reason = await outcome(other_version)
    assert "9.9.9" in reason
    assert __version__ in reason
    monkeypatch.undo()
    assert "names a, b" in await outcome(cluster.agent("c"))
    cluster.agent("a")
    async with asyncio.timeout(DEADLINE_S):
        while not any("a joined" in note for note in cluster.notes):
            await asyncio.sleep(0.01)
    assert "joined already" in await outcome(cluster.agent("a"))
    assert sum("refused" in note for note in cluster.notes) == 3
    cluster.agent("b")
    await joined


async def test_a_timeout_tells_who_was_refused_and_why(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "__version__", "9.9.9")
    cluster.agent("b")
    with pytest.raises(HostLost, match=r"a, b did not join.*b was refused:.*9\.9\.9"):
        await cluster.pool.joined(0.5)


async def test_a_host_without_the_model_is_named(cluster: Cluster) -> None:
    cluster.agent("a")
    without = cluster.agent("b")
    await cluster.both_join()
    part = StartHost(workers=(), model="/no/such/folder", fingerprint="")
    cluster.pool.start("b", part)
    message = (await cluster.wait_for_loss()).sentence
    assert "host b" in message
    assert "/no/such/folder" in message
    await cluster.pool.stop(message, DEADLINE_S)
    assert "/no/such/folder" in await outcome(without)


async def test_garbage_closes_its_own_connection_only(cluster: Cluster) -> None:
    cluster.agent("a")
    joined = asyncio.create_task(cluster.pool.joined(DEADLINE_S))
    noise = random.Random(5)
    half_open = [socket.create_connection((cluster.address.host, cluster.address.port))]
    contents = [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 8, b"\xff" + bytes(8) + b"\x7f\x03"]
    contents += [noise.randbytes(noise.randrange(1, 4000)) for _ in range(20)]
    contents += [b"\xff\0\0\0\0\0\0\0\1\x7f\3\0" + b"NULL".ljust(20, b"\0") + bytes(32)]
    for content in contents:
        with contextlib.suppress(OSError):
            stray = socket.create_connection((cluster.address.host, cluster.address.port), 5)
            stray.sendall(content)
            half_open.append(stray)
    for _ in range(150):
        socket.create_connection((cluster.address.host, cluster.address.port), 5).close()
    cluster.agent("b")
    await joined
    assert not [note for note in cluster.notes if "joined" not in note and "waiting" not in note]
    for stray in half_open:
        stray.close()


async def test_a_client_without_curve_gets_no_message_in(cluster: Cluster) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as plain:
        plain.linger = 0
        plain.identity = b"attention 0"
        plain.connect(cluster.pool.channel.endpoint)
        plain.send(b"hello")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(cluster.pool.channel.receive(), 0.5)


async def test_an_unreadable_message_ends_nothing_but_its_sender(cluster: Cluster) -> None:
    garbage = b"\x00garbage"
    cluster.pool.handle(b"host x", garbage)  # not a host of the service
    cluster.agent("a")
    cluster.agent("b")
    await cluster.both_join()
    cluster.pool.handle(b"host x", garbage)
    assert not cluster.losses
    identity = cluster.pool._joined["b"].identity
    cluster.pool.handle(identity, garbage)
    (loss,) = cluster.losses
    assert "host b" in loss.sentence
    assert "unreadable message" in loss.sentence


async def test_a_host_that_falls_silent_is_lost_within_the_heartbeat(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Stopped, its connection stays open: nothing but its silence tells."""
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    cluster.agent("a")
    command = ["-m", "janus_moe.cli", "worker", "--name", "b", "--secret-file", str(secret)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, "--join", str(cluster.address), stderr=asyncio.subprocess.PIPE
    )
    try:
        await cluster.both_join()
        part = StartHost(workers=(), model="/nowhere", fingerprint="")
        process.send_signal(signal.SIGSTOP)
        cluster.pool.start("b", part)
        message = (await cluster.wait_for_loss()).sentence
        assert "host b" in message
        assert "silent for 1 s" in message
        process.send_signal(signal.SIGCONT)
        _, output = await asyncio.wait_for(process.communicate(), DEADLINE_S)
        assert process.returncode == 1
        assert b"closed the connection or was silent" in output
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_worker_leaves_when_its_connection_is_gone(cluster: Cluster) -> None:
    lifeline_read, lifeline_write = os.pipe()
    orphaned = asyncio.Event()
    loop = asyncio.get_running_loop()

    def gone() -> None:
        loop.call_soon_threadsafe(orphaned.set)

    channel = WorkerChannel(
        Bootstrap(
            name="expert 0",
            endpoint=cluster.pool.channel.endpoint,
            lifeline_fd=lifeline_read,
            secret_fd=_pipe(SECRET),
        ),
        on_orphaned=gone,
    )
    channel.send(Hello(name="expert 0", pid=1, version="x"))
    async with asyncio.timeout(DEADLINE_S):
        identity, content = await cluster.pool.channel.receive()
        assert identity == b"expert 0"
        assert isinstance(decode_from_worker(content), Hello)
        cluster.pool.channel.post(identity, StorePut(key="k", value=b"v"))
        assert await asyncio.to_thread(channel.get, "k", DEADLINE_S) == b"v"
        assert not orphaned.is_set()
        cluster.pool.channel.close()
        await orphaned.wait()
    for fd in (lifeline_read, lifeline_write):
        os.close(fd)


def _pipe(content: bytes) -> int:
    read_fd, write_fd = os.pipe()
    os.write(write_fd, content)
    os.close(write_fd)
    return read_fd


def test_keys_are_derived_as_rfc_5869_says() -> None:
    """Test case 1 of the RFC's appendix; and both ends compute the same keys."""
    derived = hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert derived.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )
    keys = CurveKeys.derive(SECRET)
    assert keys == CurveKeys.derive(SECRET)
    assert keys.client_secret != keys.engine_secret
    assert CurveKeys.derive(SECRET + b"!").client_public != keys.client_public
    assert keys.client_secret.decode() not in repr(keys)


def test_secret_files_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with pytest.raises(ConfigError, match="openssl rand"):
        read_secret(str(path), "--secret-file")
    path.write_text("short\n")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="holds 5 bytes, needed are 16"):
        read_secret(str(path), "--secret-file")
    path.write_text("0123456789abcdef\n")
    assert read_secret(str(path), "--secret-file") == b"0123456789abcdef"
    path.chmod(0o604)
    with pytest.raises(ConfigError, match=r"mode 604.*chmod 600"):
        read_secret(str(path), "--secret-file")
