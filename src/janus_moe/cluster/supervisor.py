"""The workers of a run: started together, set up, watched, stopped together.

Implements `engine.Workers`. It moves messages and watches processes; what the messages mean to
requests is the engine's business. Workers of this host are its child processes, those of other
hosts are looked after by `cluster.hosts`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from janus_moe import __version__
from janus_moe.bundled import BUNDLED
from janus_moe.cluster.control_channel import ControlChannel
from janus_moe.cluster.deployment_plan import DeploymentPlan
from janus_moe.cluster.hosts.messages import StartHost, WorkerStart
from janus_moe.cluster.hosts.pool import IDENTITY_PREFIX, HostPool
from janus_moe.cluster.runtime.local import ProcessLauncher, WorkerProcess, end_processes
from janus_moe.cluster.worker_layout import setup_message, worker_layouts
from janus_moe.errors import JanusError, ServiceError, WorkerDied, WorkerFailed
from janus_moe.messages import (
    Failed,
    FromWorker,
    Hello,
    Progress,
    Ready,
    Stop,
    StorePut,
    ToInstance,
    ToWorker,
    decode_from_worker,
)
from janus_moe.model.source import fingerprint

OnProgress = Callable[[Progress], None]
STOP_GRACE_S = 3.0
FAILED_GRACE_S = 0.5
SECONDHAND_S = 1.0
LAST_WORDS_S = 0.4
"""Who waited for a worker that is gone may know the stage, step and layer, and say so in time."""
"""How long a worker's complaint about a peer waits for the news of what happened to the peer."""
HOST_WORD_S = 1.0
LOOPBACK_ADDRESS = "127.0.0.1"


class Cluster:
    """All worker processes of one run.

    hosts: the other hosts, which have joined; None for a run on this one. bind_host: where workers
    of this host may listen, with transports that need it.
    """

    def __init__(
        self, plan: DeploymentPlan, hosts: HostPool | None = None, bind_host: str = LOOPBACK_ADDRESS
    ) -> None:
        self._plan = plan
        self._hosts = hosts
        self._bind_host = bind_host
        self._layouts = worker_layouts(plan)
        self._channel = ControlChannel.local() if hosts is None else hosts.channel
        self._launcher = ProcessLauncher(self._channel.secret)
        self._workers: list[WorkerProcess] = []
        self._watchers: list[asyncio.Task[None]] = []
        self._inbox: asyncio.Queue[FromWorker | ServiceError] = asyncio.Queue()
        self._receiver: asyncio.Task[None] | None = None
        self._stopping = False
        self._stage = "starting"
        self._seen = ""
        self._bereaved: set[str] = set()
        self._greeted: set[str] = set()
        self._store: dict[str, StorePut] = {}
        self._home = {
            instance: layout.name for layout in self._layouts for instance in layout.instances
        }

    @property
    def pids(self) -> dict[str, int]:
        """Worker name, with its host where that is another one -> process id."""
        own = {worker.name: worker.process.pid for worker in self._workers}
        return own if self._hosts is None else {**own, **self._hosts.pids}

    async def start(self, on_progress: OnProgress) -> None:
        """Returns once every worker is ready; raises, with nothing left, when one is not."""
        try:
            await self._spawn()
            async with asyncio.timeout(self._plan.config.startup_timeout):
                await self._set_up(on_progress)
            self._enter("serving")
        except TimeoutError:
            late = WorkerFailed(
                f"the workers were not ready within {self._plan.config.startup_timeout:.0f} s; "
                "raise --startup-timeout if loading is only slow"
            )
            await self.close(grace_s=FAILED_GRACE_S, error=str(late))
            raise late from None
        except JanusError as error:
            await self.close(grace_s=FAILED_GRACE_S, error=str(error))
            raise
        except BaseException:
            await self.close(grace_s=FAILED_GRACE_S)
            raise

    def send(self, message: ToInstance) -> None:
        """Sends a message to the worker that hosts the instance it is for."""
        name = self._home[message.instance]
        try:
            self._post(name, message)
        except zmq.ZMQError as error:
            where = "" if self._hosts is None else f" on host {self._host_name(message)}"
            raise ServiceError(f"{name}{where} cannot be reached: {error}") from None

    async def receive(self) -> FromWorker:
        """The next message; raises WorkerDied or HostLost once one has ended unasked."""
        event = await self._inbox.get()
        if isinstance(event, ServiceError):
            self._inbox.put_nowait(event)  # for whoever asks next
            raise event
        return event

    async def close(self, grace_s: float = STOP_GRACE_S, error: str | None = None) -> None:
        """Stops the workers and frees everything; safe to call twice.

        grace_s: what they get to leave by themselves; then they are terminated, then killed.
        error: why the service has ended, for the other hosts; None when it was asked to.
        """
        if self._stopping:
            return
        self._stopping = True
        for layout in self._layouts:
            with contextlib.suppress(zmq.ZMQError):
                self._post(layout.name, Stop())
        hosts_end = asyncio.create_task(self._stop_hosts(error, grace_s))
        await end_processes(self._workers, grace_s)
        await hosts_end
        self._launcher.close()
        for task in (*self._watchers, *([self._receiver] if self._receiver else [])):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._channel.close()

    async def _stop_hosts(self, error: str | None, grace_s: float) -> None:
        if self._hosts is not None:
            await self._hosts.stop(error, 3 * grace_s + HOST_WORD_S)

    async def _spawn(self) -> None:
        self._receiver = asyncio.create_task(self._receive_forever())
        if self._hosts is not None:
            self._hosts.watch(self._lost)
            self._start_hosts(self._hosts)
        for layout in self._layouts:
            if not layout.host.share.is_local:
                continue
            bootstrap = layout.bootstrap(self._channel.endpoint, self._bind_host)
            worker = await self._launcher.spawn(bootstrap, layout.num_threads)
            self._workers.append(worker)
            self._watchers.append(asyncio.create_task(self._watch(worker)))

    def _start_hosts(self, hosts: HostPool) -> None:
        name, folder = self._plan.config.model, self._plan.folder
        is_folder = name != BUNDLED and Path(name).expanduser().is_dir()
        model = str(folder.resolve()) if is_folder else name
        for host in self._plan.hosts:
            if not host.share.is_local:
                workers = tuple(
                    WorkerStart(name=layout.name, num_threads=layout.num_threads)
                    for layout in self._layouts
                    if layout.host == host
                )
                part = StartHost(workers=workers, model=model, fingerprint=fingerprint(folder))
                hosts.start(host.share, part)

    def _enter(self, stage: str) -> None:
        self._stage = stage
        if self._hosts is not None:
            self._hosts.stage = stage

    async def _set_up(self, on_progress: OnProgress) -> None:
        """Answers hellos with setups until all workers are ready."""
        layouts = {layout.name: layout for layout in self._layouts}
        ready: set[str] = set()
        while len(ready) < len(layouts):
            match await self.receive():
                case Hello(name=name, version=version):
                    if version != __version__:
                        raise WorkerFailed(
                            f"{name} is Janus {version}, the engine {__version__}; install the "
                            "same version everywhere"
                        )
                    self._post(name, setup_message(self._plan, layouts[name]))
                    for put in self._store.values():
                        self._post(name, put)
                    self._greeted.add(name)
                case Progress() as progress:
                    on_progress(progress)
                case Ready(name=name):
                    ready.add(name)
                case Failed(name=name, error=error):
                    raise WorkerFailed(f"{name} could not start: {error}")

    def _host_name(self, message: ToInstance) -> str:
        return self._plan.host_of(message.instance).share.name

    def _post(self, name: str, message: ToWorker) -> None:
        self._channel.post(name.encode(), message)

    async def _receive_forever(self) -> None:
        names = {layout.name for layout in self._layouts}
        while True:
            identity, content = await self._channel.receive()
            if self._hosts is not None and identity.startswith(IDENTITY_PREFIX):
                self._hosts.handle(identity, content)
                continue
            name = identity.decode(errors="replace")
            if name in names:  # else not one of ours
                self._sort_in(name, content)

    def _sort_in(self, name: str, content: bytes) -> None:
        try:
            message = decode_from_worker(content)
        except msgspec.DecodeError as error:
            message = Failed(name=name, error=f"unreadable message: {error}")
        match message:
            case StorePut() as put:
                self._store[put.key] = put
                for other in self._greeted:
                    with contextlib.suppress(zmq.ZMQError):  # whoever is gone is noticed elsewhere
                        self._post(other, put)
            case Failed(secondhand=True) if self._hosts is not None:
                self._bereaved.add(name)
                self._seen = self._seen or f"{name} saw: {message.error.partition(';')[0]}"
                asyncio.get_running_loop().call_later(SECONDHAND_S, self._inbox.put_nowait, message)
            case _:
                self._inbox.put_nowait(message)

    def _lost(self, error: ServiceError) -> None:
        """Of another host; told a moment later, with what the others have seen of it. A worker that
        ends because it has lost a peer waits for news of that peer."""

        def tell() -> None:
            self._inbox.put_nowait(type(error)(f"{error}; {self._seen}") if self._seen else error)

        follows = any(str(error).startswith(f"{name} (") for name in self._bereaved)
        delay = 2 * SECONDHAND_S if follows else LAST_WORDS_S
        asyncio.get_running_loop().call_later(delay, tell)

    async def _watch(self, worker: WorkerProcess) -> None:
        """Reports a worker that ends unasked, after what it may have said itself."""
        await worker.process.wait()
        if self._stopping:
            return
        await asyncio.sleep(0.2)  # its last words, if any, are more telling
        self._inbox.put_nowait(
            WorkerDied(f"{worker.title} {worker.how_it_ended()} while {self._stage}")
        )
