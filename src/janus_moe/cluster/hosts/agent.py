"""One host's part in a cluster: joins the engine, runs the workers it is told to, watches them.

Workers talk to the engine by themselves. When the agent ends, however it does, so do they: only it
holds the other end of their lifeline.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from janus_moe import __version__
from janus_moe.cluster.grace_periods import FAILED_GRACE_S, HOST_VERDICT_S, STOP_GRACE_S
from janus_moe.cluster.host_facts import host_facts
from janus_moe.cluster.hosts.addresses import Address
from janus_moe.cluster.hosts.link import EngineLink, join_engine
from janus_moe.cluster.hosts.messages import (
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
)
from janus_moe.cluster.hosts.secret import CurveKeys
from janus_moe.cluster.runtime.processes import ProcessLauncher, WorkerProcess, end_processes
from janus_moe.cluster.worker.bootstrap import Bootstrap
from janus_moe.errors import CheckpointError, HostLost, JanusError, WorkerFailed
from janus_moe.model.source import fingerprint, resolve_model

WELCOME_S = 20.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """name: what the engine calls this host. bind_host: the only address workers listen at.
    heartbeat_timeout_s: silence of the engine after which it is gone."""

    engine: Address
    name: str
    secret: bytes
    bind_host: str
    join_timeout_s: float = 60.0
    heartbeat_timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class _Signalled:
    number: signal.Signals


@dataclass(frozen=True, slots=True)
class _StartFailed:
    error: str


_Event = ToHost | WorkerEnded | _Signalled | _StartFailed | JanusError


async def run_agent(settings: AgentSettings, say: Say) -> None:
    """Returns when the engine has stopped the host, or after a signal; raises HostLost or
    WorkerFailed when something went wrong. Leaves no process behind."""
    keys = CurveKeys.derive(settings.secret)
    link = await join_engine(
        settings.engine,
        settings.name,
        keys,
        settings.join_timeout_s,
        settings.heartbeat_timeout_s,
        say,
    )
    agent = _Agent(settings, link, say)
    try:
        await agent.enter()
        with _signals_go_to(agent.events):
            await agent.serve()
    finally:
        await agent.close()


class _Agent:
    def __init__(self, settings: AgentSettings, link: EngineLink, say: Say) -> None:
        self.events: asyncio.Queue[_Event] = asyncio.Queue()
        self._settings = settings
        self._link = link
        self._say = say
        self._launcher = ProcessLauncher(settings.secret)
        self._workers: list[WorkerProcess] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._grace_s = FAILED_GRACE_S

    async def enter(self) -> None:
        """Introduces this host and waits to be let in."""
        facts = host_facts("cpu")
        self._link.send(
            JoinHost(
                name=self._settings.name,
                version=__version__,
                cores=facts.cores,
                free_bytes=facts.free_bytes,
            )
        )
        engine = self._settings.engine
        try:
            async with asyncio.timeout(WELCOME_S):
                answer = await self._link.receive()
        except TimeoutError:
            raise HostLost(f"{engine} did not answer within {WELCOME_S:g} s") from None
        if isinstance(answer, RefuseHost):
            raise WorkerFailed(f"{engine} refused this host: {answer.reason}")
        if isinstance(answer, StopHost):
            raise WorkerFailed(f"{engine} is stopping: {answer.error or 'by request'}")
        if not isinstance(answer, Welcome):
            raise WorkerFailed(f"{engine} answered {type(answer).__name__} instead of a welcome")
        self._say(f"joined {engine} as {self._settings.name}; waiting for the other hosts")

    async def serve(self) -> None:
        """Does what the engine says until it says stop."""
        self._tasks.append(asyncio.create_task(self._receive_forever()))
        failed = False
        while True:
            timeout_s = HOST_VERDICT_S if failed else None
            try:
                event = await asyncio.wait_for(self.events.get(), timeout_s)
            except TimeoutError:
                raise HostLost("the engine did not end the service after the failure") from None
            match event:
                case StartHost() as part:
                    self._tasks.append(asyncio.create_task(self._start(part)))
                case _StartFailed(error=error):
                    failed = True
                    self._say(error)
                    self._link.send(HostFailed(error=error))
                case WorkerEnded(name=name, pid=pid, how=how):
                    failed = True
                    self._say(f"{name} (pid {pid}) {how}")
                    self._link.send(event)
                case StopHost(error=error):
                    self._grace_s = STOP_GRACE_S if error is None else FAILED_GRACE_S
                    await self._end_workers()
                    self._link.send(HostStopped())
                    if error is not None:
                        raise WorkerFailed(f"the service ended: {error}")
                    return
                case _Signalled(number=number):
                    error = f"`janus worker` was stopped by {number.name}"
                    self._link.send(HostFailed(error=error))
                    return
                case JanusError():
                    raise event
                case Ping() | Welcome() | RefuseHost():
                    pass

    async def close(self) -> None:
        await self._end_workers()
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._launcher.close()
        self._link.close()

    async def _start(self, part: StartHost) -> None:
        """Starts the workers. Signals and the engine are heard meanwhile."""
        try:
            folder = await asyncio.to_thread(find_model, part.model, part.fingerprint)
            for start in part.workers:
                bootstrap = Bootstrap(
                    name=start.name,
                    endpoint=self._link.endpoint,
                    bind_host=self._settings.bind_host,
                    checkpoint=str(folder),
                )
                worker = await self._launcher.spawn(
                    bootstrap, start.num_threads, part.hang_timeout_s
                )
                self._workers.append(worker)
                self._tasks.append(asyncio.create_task(self._watch(worker)))
        except (JanusError, OSError) as error:
            self.events.put_nowait(_StartFailed(str(error)))
            return
        self._link.send(HostStarted(pids={w.name: w.process.pid for w in self._workers}))
        started = ", ".join(f"{w.name} (pid {w.process.pid})" for w in self._workers)
        self._say(f"started {started}")

    async def _end_workers(self) -> None:
        workers, self._workers = self._workers, []
        await end_processes(workers, self._grace_s)

    async def _receive_forever(self) -> None:
        try:
            while True:
                await self.events.put(await self._link.receive())
        except JanusError as error:
            await self.events.put(error)

    async def _watch(self, worker: WorkerProcess) -> None:
        """Reports a worker that ends unasked."""
        await worker.process.wait()
        if worker in self._workers:
            ended = WorkerEnded(
                name=worker.name,
                pid=worker.process.pid,
                how=worker.how_it_ended(),
                spoke=worker.exited_by_itself,
            )
            await self.events.put(ended)


def find_model(name: str, expected: str) -> Path:
    """The folder of the engine's model on this host; raises CheckpointError."""
    folder = resolve_model(name)
    try:
        found = fingerprint(folder)
    except OSError as error:
        raise CheckpointError(f"model {folder} cannot be read: {error.strerror}") from None
    if found != expected:
        raise CheckpointError(
            f"model {name} differs from the engine's (config, names, sizes or headers of its "
            "files); copy the same files to every host"
        )
    return folder


@contextlib.contextmanager
def _signals_go_to(events: asyncio.Queue[_Event]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, events.put_nowait, _Signalled(number))
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
