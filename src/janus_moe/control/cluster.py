"""The workers of a run: started together, set up, watched, stopped together.

Implements `engine.Workers`. It moves messages and watches processes; what the messages mean to
requests is the engine's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from janus_moe import __version__
from janus_moe.control.launcher import ProcessLauncher, WorkerProcess, end_processes
from janus_moe.control.layout import create_region, setup_message, worker_layouts
from janus_moe.control.resolve import RunPlan
from janus_moe.errors import ServiceError, WorkerDied, WorkerFailed
from janus_moe.messages import (
    Failed,
    FromWorker,
    Hello,
    Progress,
    Ready,
    Stop,
    ToInstance,
    ToWorker,
    decode_from_worker,
    encode,
    recipient,
)
from janus_moe.transport import ShmRegion

OnProgress = Callable[[Progress], None]
STOP_GRACE_S = 3.0
FAILED_GRACE_S = 0.5


class Cluster:
    """All worker processes of one run on this host."""

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan
        self._layouts = worker_layouts(plan)
        self._launcher = ProcessLauncher()
        self._workers: list[WorkerProcess] = []
        self._watchers: list[asyncio.Task[None]] = []
        self._inbox: asyncio.Queue[FromWorker | WorkerDied] = asyncio.Queue()
        self._directory = Path(tempfile.mkdtemp(prefix="janus-"))
        self._endpoint = f"ipc://{self._directory}/control"
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.bind(self._endpoint)
        self._region: ShmRegion | None = None
        self._receiver: asyncio.Task[None] | None = None
        self._stopping = False
        self._stage = "starting"
        self._home = {
            instance: layout.name for layout in self._layouts for instance in layout.instances
        }

    @property
    def pids(self) -> dict[str, int]:
        """Worker name -> process id."""
        return {worker.name: worker.process.pid for worker in self._workers}

    async def start(self, on_progress: OnProgress) -> None:
        """Returns once every worker is ready; raises, with nothing left, when one is not."""
        try:
            await self._spawn()
            async with asyncio.timeout(self._plan.config.startup_timeout):
                await self._set_up(on_progress)
            self._stage = "serving"
        except TimeoutError:
            await self.close(grace_s=FAILED_GRACE_S)
            raise WorkerFailed(
                f"the workers were not ready within {self._plan.config.startup_timeout:.0f} s; "
                "raise --startup-timeout if loading is only slow"
            ) from None
        except BaseException:
            await self.close(grace_s=FAILED_GRACE_S)
            raise

    def send(self, message: ToInstance) -> None:
        """Sends a message to the worker that hosts the instance it is for."""
        name = self._home[recipient(message)]
        try:
            self._post(name, message)
        except zmq.ZMQError as error:
            raise ServiceError(f"{name} cannot be reached: {error}") from None

    async def receive(self) -> FromWorker:
        """The next message; raises WorkerDied once a worker has ended unasked."""
        event = await self._inbox.get()
        if isinstance(event, WorkerDied):
            self._inbox.put_nowait(event)  # for whoever asks next
            raise event
        return event

    async def close(self, grace_s: float = STOP_GRACE_S) -> None:
        """Stops the workers and frees everything; safe to call twice.

        grace_s: what they get to leave by themselves; then they are terminated, then killed.
        """
        if self._stopping:
            return
        self._stopping = True
        for worker in self._workers:
            with contextlib.suppress(zmq.ZMQError):
                self._post(worker.name, Stop())
        if self._region is not None:
            self._region.shutdown()
        await end_processes(self._workers, grace_s)
        self._launcher.close()
        for task in (*self._watchers, *([self._receiver] if self._receiver else [])):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._socket.close()
        self._context.term()
        if self._region is not None:
            self._region.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _spawn(self) -> None:
        self._region = create_region(self._plan)
        self._receiver = asyncio.create_task(self._receive_forever())
        for layout in self._layouts:
            bootstrap = layout.bootstrap(self._endpoint, self._region)
            fds = () if self._region is None else self._region.fds
            worker = await self._launcher.spawn(bootstrap, fds, layout.environment)
            self._workers.append(worker)
            self._watchers.append(asyncio.create_task(self._watch(worker)))

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
                case Progress() as progress:
                    on_progress(progress)
                case Ready(name=name):
                    ready.add(name)
                case Failed(name=name, error=error):
                    raise WorkerFailed(f"{name} could not start: {error}")

    def _post(self, name: str, message: ToWorker) -> None:
        """Queues a message; the queues have no limit, so this is done at once or an error.

        Sent through the asyncio socket itself: a send may swallow the readiness of the socket's
        edge-triggered descriptor, and only the asyncio socket looks again after each send.
        """
        sent = asyncio.ensure_future(self._socket.send_multipart([name.encode(), encode(message)]))
        if sent.done():
            sent.result()

    async def _receive_forever(self) -> None:
        names = {layout.name for layout in self._layouts}
        while True:
            identity, *frames = await self._socket.recv_multipart()
            name = identity.decode(errors="replace")
            if name not in names or len(frames) != 1:
                continue  # not one of ours
            try:
                self._inbox.put_nowait(decode_from_worker(frames[0]))
            except msgspec.DecodeError as error:
                self._inbox.put_nowait(Failed(name=name, error=f"unreadable message: {error}"))

    async def _watch(self, worker: WorkerProcess) -> None:
        """Reports a worker that ends unasked, after what it may have said itself."""
        await worker.process.wait()
        if self._stopping:
            return
        await asyncio.sleep(0.2)  # its last words, if any, are more telling
        self._inbox.put_nowait(
            WorkerDied(f"{worker.title} {worker.how_it_ended()} while {self._stage}")
        )
