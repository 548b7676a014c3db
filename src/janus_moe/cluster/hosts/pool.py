"""The engine's view of its other hosts: who has joined, what they are told, who is gone.

A host that is lost ends the service. This module does not know what workers do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import zmq

from janus_moe import __version__
from janus_moe.cluster.control_channel import ControlChannel
from janus_moe.cluster.host_facts import HostFacts
from janus_moe.cluster.hosts.messages import (
    FromHost,
    HostFailed,
    HostStarted,
    HostStopped,
    JoinHost,
    Ping,
    RefuseHost,
    StartHost,
    StopHost,
    ToHost,
    Welcome,
    WorkerEnded,
    decode_from_host,
)
from janus_moe.cluster.runtime.base import (
    OnRuntimeEvent,
    RuntimeEvent,
    RuntimeFailed,
    WorkersLost,
)
from janus_moe.errors import HostLost, WorkerDied

IDENTITY_PREFIX = b"host "
"""How ZeroMQ identities of hosts begin; workers have their names."""
PINGS_PER_TIMEOUT = 10

OnNote = Callable[[str], None]


def host_identity(name: str) -> bytes:
    """Unlike those of other processes, even of the same name; those are refused with a reason."""
    return IDENTITY_PREFIX + f"{name} {os.urandom(8).hex()}".encode()


@dataclass(slots=True)
class _Joined:
    name: str
    identity: bytes
    facts: HostFacts
    pids: dict[str, int] = field(default_factory=dict)
    workers: tuple[str, ...] = ()
    stopped: asyncio.Event = field(default_factory=asyncio.Event)


class HostPool:
    """All hosts but the engine's own.

    names: who is expected. on_note: called with a sentence when something happens.
    """

    def __init__(
        self,
        channel: ControlChannel,
        names: Sequence[str],
        heartbeat_timeout_s: float,
        on_note: OnNote = lambda note: None,
    ) -> None:
        self.channel = channel
        self._names = tuple(names)
        self._timeout_s = heartbeat_timeout_s
        self._on_note = on_note
        self._joined: dict[str, _Joined] = {}
        self._refused: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._all_there = False
        self._stopping = False
        self._events: list[RuntimeEvent] = []
        self._on_event: OnRuntimeEvent = self._events.append
        self._pinging = asyncio.create_task(self._ping_forever())

    @property
    def pids(self) -> dict[str, int]:
        """Worker name and host -> process id there."""
        return {
            f"{name} on {host.name}": pid
            for host in self._joined.values()
            for name, pid in host.pids.items()
        }

    async def joined(self, timeout_s: float) -> Mapping[str, HostFacts]:
        """What every host has, once all are there; raises HostLost naming those that are not."""
        receiving = asyncio.create_task(self._receive_joins())
        try:
            async with asyncio.timeout(timeout_s):
                while missing := self._missing():
                    if not self._joined:
                        self._on_note(f"waiting for {', '.join(missing)}")
                    await self._changed.wait()
                    self._changed.clear()
        except TimeoutError:
            refusals = [f"; {name} was refused: {why}" for name, why in self._refused.items()]
            raise HostLost(
                f"hosts {', '.join(self._missing())} did not join within {timeout_s:g} s "
                f"(--startup-timeout); run `janus worker` there{''.join(refusals)}"
            ) from None
        finally:
            receiving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await receiving
        self._all_there = True
        return {name: host.facts for name, host in self._joined.items()}

    def watch(self, on_event: OnRuntimeEvent) -> None:
        """Calls `on_event` with what ends the service from now on, and what has already."""
        self._on_event = on_event
        for event in self._events:
            on_event(event)

    def start(self, name: str, part: StartHost) -> None:
        """Tells a host its part."""
        host = self._joined[name]
        host.workers = tuple(worker.name for worker in part.workers)
        self._send(host, part)

    def handle(self, identity: bytes, content: bytes) -> None:
        """Acts on a message from a host, or from an agent that wants to join."""
        try:
            message = decode_from_host(content)
        except msgspec.DecodeError as error:
            if host := self._by_identity(identity):
                self._lose(host, f"sent an unreadable message ({error})")
            return
        if isinstance(message, JoinHost):
            self._join(identity, message)
        elif host := self._by_identity(identity):
            self._follow(host, message)

    async def stop(self, error: str | None, timeout_s: float) -> None:
        """Stops all hosts, telling them why, and waits for their last word."""
        self._stopping = True
        hosts = list(self._joined.values())
        for host in hosts:
            self._send(host, StopHost(error=error))
        waits = [asyncio.create_task(host.stopped.wait()) for host in hosts]
        if waits:
            await asyncio.wait(waits, timeout=timeout_s)
        for task in (*waits, self._pinging):
            task.cancel()

    def _follow(self, host: _Joined, message: FromHost) -> None:
        match message:
            case HostStarted(pids=pids):
                host.pids = pids
            case WorkerEnded(name=name, pid=pid, how=how, spoke=spoke):
                sentence = f"{name} (pid {pid} on host {host.name}) {how}"
                self._on_event(WorkersLost((name,), WorkerDied, sentence, spoke))
            case HostFailed(error=error) if not self._stopping:
                if self._all_there:
                    self._on_event(RuntimeFailed(f"host {_title(host)}: {error}"))
                else:
                    self._forget(host, f"has left: {error}")
            case HostStopped():
                host.stopped.set()

    def _join(self, identity: bytes, message: JoinHost) -> None:
        name, reason = message.name, None
        if message.version != __version__:
            reason = (
                f"host {name} has Janus {message.version}, the engine {__version__}; install the "
                "same version everywhere"
            )
        elif name not in self._names:
            reason = f"no host {name!r} is expected; --hosts names {', '.join(self._names)}"
        elif name in self._joined:
            reason = f"a host {name!r} has joined already; every host needs a name of its own"
        if reason is not None:
            self._refused[name] = reason
            self._on_note(f"refused {name}: {reason}")
            with contextlib.suppress(zmq.ZMQError):
                self.channel.post(identity, RefuseHost(reason=reason))
            return
        self._refused.pop(name, None)
        facts = HostFacts(cores=message.cores, free_bytes=message.free_bytes)
        host = _Joined(name, identity, facts)
        self._joined[name] = host
        self._changed.set()
        if self._send(host, Welcome()):
            missing = self._missing()
            rest = f"; waiting for {', '.join(missing)}" if missing else ""
            self._on_note(
                f"{name} joined: {facts.cores} cores, {facts.free_bytes / 2**30:.1f} GiB{rest}"
            )

    def _missing(self) -> list[str]:
        return [name for name in self._names if name not in self._joined]

    def _by_identity(self, identity: bytes) -> _Joined | None:
        hosts = self._joined.values()
        return next((host for host in hosts if host.identity == identity), None)

    def _send(self, host: _Joined, message: ToHost) -> bool:
        """Whether the host can still be reached."""
        try:
            self.channel.post(host.identity, message)
        except zmq.ZMQError:
            self._lose(host, f"closed its connection, or was silent for {self._timeout_s:g} s,")
            return False
        return True

    def _lose(self, host: _Joined, what: str) -> None:
        host.stopped.set()
        if self._stopping:
            return
        if self._all_there:
            sentence = f"host {_title(host)} {what}"
            self._on_event(WorkersLost(host.workers, HostLost, sentence))
        else:
            self._forget(host, what)

    def _forget(self, host: _Joined, what: str) -> None:
        """Nothing depends on it yet; it may come again."""
        self._joined.pop(host.name, None)
        self._on_note(f"{host.name} {what}")
        self._changed.set()

    async def _receive_joins(self) -> None:
        while True:
            identity, content = await self.channel.receive()
            if identity.startswith(IDENTITY_PREFIX):
                self.handle(identity, content)

    async def _ping_forever(self) -> None:
        """A connection that is gone refuses a message; nothing else would notice it."""
        lost: set[bytes] = set()
        while True:
            await asyncio.sleep(self._timeout_s / PINGS_PER_TIMEOUT)
            for host in list(self._joined.values()):
                if host.identity not in lost and not self._send(host, Ping()):
                    lost.add(host.identity)


def _title(host: _Joined) -> str:
    return f"{host.name} ({', '.join(host.workers)})" if host.workers else host.name
