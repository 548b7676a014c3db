"""The workers of a run: started together, set up, watched, stopped together.

Implements `ObservableWorkers`. The cluster carries out what others decide: a `Runtime` starts and
ends processes, `MessageRouter` knows who gets which message, `FailureReport` says what a failure's
cause was. What messages mean to requests is the engine's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping

import zmq

from janus_moe import __version__
from janus_moe.cluster.control_channel import ControlChannel
from janus_moe.cluster.deployment_plan import DeploymentPlan
from janus_moe.cluster.failure_report import FailureReport
from janus_moe.cluster.generations.events import (
    Event,
    InstanceDied,
    InstanceFailed,
    InstanceReady,
    LinkBroken,
    MemberCommitted,
    MemberOpened,
    MemberRefused,
)
from janus_moe.cluster.grace_periods import FAILED_GRACE_S, STOP_GRACE_S
from janus_moe.cluster.message_router import MessageRouter, OnForeign, OnMessage
from janus_moe.cluster.runtime.base import Runtime, RuntimeEvent, WorkersLost
from janus_moe.cluster.worker_layout import (
    WorkerLayout,
    open_message,
    setup_message,
    worker_layouts,
)
from janus_moe.errors import JanusError, ServiceError, WorkerDied, WorkerFailed
from janus_moe.messages import (
    CommitGeneration,
    Failed,
    FromWorker,
    GenerationCommitted,
    GenerationFailed,
    GenerationOpened,
    GenerationOrder,
    Hello,
    Progress,
    Ready,
    Setup,
    Stop,
    ToInstance,
)
from janus_moe.spec import InstanceId

logger = logging.getLogger(__name__)

OnProgress = Callable[[Progress], None]
OnInstanceEvent = Callable[[Event], None]


class Cluster:
    """All worker processes of one run.

    channel: the engine's end of the control channel, which is closed with the cluster.
    runtime: starts and ends the workers.
    foreign: see `MessageRouter`.
    """

    def __init__(
        self,
        plan: DeploymentPlan,
        channel: ControlChannel,
        runtime: Runtime,
        foreign: Mapping[bytes, OnForeign] | None = None,
    ) -> None:
        self._plan = plan
        self._channel = channel
        self._runtime = runtime
        self._layouts = {layout.name: layout for layout in worker_layouts(plan)}
        self._report = FailureReport(tuple(self._layouts))
        self._router = MessageRouter(
            channel.post,
            {i: layout.name for layout in self._layouts.values() for i in layout.instances},
            {name: layout.title for name, layout in self._layouts.items()},
            self._on_failed,
            foreign or {},
        )
        self._inbox: asyncio.Queue[FromWorker | ServiceError] = asyncio.Queue()
        self._setups: dict[str, Setup] = {}
        self._building: set[str] = set()  # workers that were started while the service runs
        self._router.on_message += [self._on_message, self._inbox.put_nowait]
        self._receiver: asyncio.Task[None] | None = None
        self._on_instance_event: OnInstanceEvent | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False
        self._closing = False

    @property
    def pids(self) -> Mapping[str, int]:
        """Worker name, with its host where that is another one -> process id."""
        return self._runtime.pids

    @property
    def on_message(self) -> list[OnMessage]:
        """What is called with every message of the workers."""
        return self._router.on_message

    async def start(self, on_progress: OnProgress) -> None:
        """Returns once every worker is ready; raises, with nothing left, when one is not."""
        try:
            self._receiver = asyncio.create_task(self._receive_forever())
            specs = [layout.spec for layout in self._layouts.values()]
            await self._runtime.start(specs, self._on_event)
            async with asyncio.timeout(self._plan.config.startup_timeout):
                await self._set_up(on_progress)
            self._report.stage = "serving"
        except TimeoutError:
            late = WorkerFailed(
                f"the workers were not ready within {self._plan.config.startup_timeout:g} s; "
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
        self._router.send(message)

    def tell(self, on_instance_event: OnInstanceEvent) -> None:
        """From now on what happens to instances is told, and does not end the service.

        Only where every worker has one instance and is on this host.
        """
        self._on_instance_event = on_instance_event

    def start_instance(self, instance: InstanceId, setup: Setup) -> None:
        """Starts a worker for one instance of this host; what comes of it is told."""
        host = self._plan.hosts[0]
        layout = WorkerLayout(str(instance), host, (instance,), setup.num_threads)
        self._layouts[layout.name] = layout
        self._setups[layout.name] = setup
        self._building.add(layout.name)
        self._router.add(layout.name, layout.title, layout.instances)
        task = asyncio.create_task(self._start_worker(layout))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def kill_instance(self, instance: InstanceId) -> None:
        """Kills the worker of one instance; nothing that it said is believed any more."""
        self._router.remove(str(instance))
        self._runtime.kill(str(instance))

    def order(self, instance: InstanceId, order: GenerationOrder | Stop) -> None:
        """Sends an order to the worker of one instance; one that is gone gets none."""
        with contextlib.suppress(zmq.ZMQError):  # the runtime tells that it is gone
            self._router.post(str(instance), order)

    def forget_generation(self, generation: int) -> None:
        """Drops what was kept so that the members of a generation could find each other."""
        self._router.forget(generation)

    async def receive(self) -> FromWorker:
        """The next message; raises the ServiceError that ended the service, now and later."""
        event = await self._inbox.get()
        if isinstance(event, ServiceError):
            self._inbox.put_nowait(event)
            raise event
        return event

    async def close(self, grace_s: float = STOP_GRACE_S, error: str | None = None) -> None:
        """Stops the workers and frees everything; safe to call twice.

        grace_s: what they get to leave by themselves; then they are terminated, then killed.
        error: why the service has ended, for the other hosts; None when it was asked to.
        """
        if self._closing:
            return
        self._closing = True
        for name in self._layouts:
            with contextlib.suppress(zmq.ZMQError):
                self._router.post(name, Stop())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for name in self._building:  # it would finish that first, for nothing
            self._runtime.kill(name)
        await self._runtime.stop(grace_s, error)
        if self._receiver is not None:
            self._receiver.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._receiver
        self._channel.close()

    async def _set_up(self, on_progress: OnProgress) -> None:
        """Answers hellos with setups until all workers are ready."""
        ready: set[str] = set()
        while len(ready) < len(self._layouts):
            match await self.receive():
                case Hello(name=name, version=version):
                    if version != __version__:
                        raise WorkerFailed(
                            f"{name} is Janus {version}, the engine {__version__}; install the "
                            "same version everywhere"
                        )
                    self._router.greet(name, setup_message(self._plan, self._layouts[name]))
                case Progress() as progress:
                    on_progress(progress)
                case Ready(name=name):
                    ready.add(name)
        await self._tell_all(lambda layout: open_message(self._plan, layout))
        order = CommitGeneration(generation=self._plan.membership.generation)
        await self._tell_all(lambda layout: order)

    async def _tell_all(self, order_of: Callable[[WorkerLayout], GenerationOrder]) -> None:
        """Gives an order to every worker and waits until all have carried it out."""
        for name, layout in self._layouts.items():
            self._router.post(name, order_of(layout))
        missing = set(self._layouts)
        while missing:
            match await self.receive():
                case GenerationFailed(name=name, error=error):
                    raise WorkerFailed(f"{name}: {error}")
                case GenerationOpened(name=name) | GenerationCommitted(name=name):
                    missing.discard(name)

    async def _start_worker(self, layout: WorkerLayout) -> None:
        try:
            await self._runtime.start([layout.spec], self._on_event)
        except OSError as error:
            lost = f"{layout.title} could not be started: {error}"
            self._on_event(WorkersLost((layout.name,), WorkerDied, lost))

    def _on_message(self, message: FromWorker) -> None:
        """Sets up workers that come later, and tells what becomes of instances."""
        if self._on_instance_event is None:
            return
        match message:
            case Hello(name=name) if (setup := self._setups.pop(name, None)) is not None:
                self._router.greet(name, setup)
                return
            case Ready(name=name):
                self._building.discard(name)
                event: Event = InstanceReady(self._instance(name))
            case GenerationOpened(name=name, generation=generation):
                event = MemberOpened(self._instance(name), generation)
            case GenerationFailed(name=name, generation=generation, error=error):
                event = MemberRefused(self._instance(name), generation, error)
            case GenerationCommitted(name=name, generation=generation):
                event = MemberCommitted(self._instance(name), generation)
            case _:
                return
        self._on_instance_event(event)

    def _instance(self, worker: str) -> InstanceId:
        (instance,) = self._layouts[worker].instances
        return instance

    def _tell_failed(self, instance: InstanceId, failed: Failed) -> None:
        assert self._on_instance_event is not None
        if not failed.caused_by_peer or not failed.peers:
            self._on_instance_event(InstanceFailed(instance, failed.error))
            return
        for peer in failed.peers:
            reason = f"{instance} lost {peer}: {failed.error}"
            self._on_instance_event(LinkBroken(instance, peer, failed.generation, reason))

    def _tell_lost(self, lost: WorkersLost) -> None:
        assert self._on_instance_event is not None
        for worker in lost.workers:
            if worker in self._layouts:
                logger.warning("%s", lost.sentence)
                self._router.remove(worker)
                instance = self._instance(worker)
                del self._layouts[worker]
                self._building.discard(worker)
                self._on_instance_event(InstanceDied(instance, lost.sentence))

    async def _receive_forever(self) -> None:
        try:
            while True:
                self._router.route(*await self._channel.receive())
        # A last resort: nothing would be heard any more, and the service would hang.
        except Exception as error:
            logger.exception("a message of a worker could not be handled")
            what = f"a message of a worker could not be handled: {type(error).__name__}"
            self._inbox.put_nowait(WorkerFailed(what))

    def _on_failed(self, worker: str, failed: Failed) -> None:
        if self._on_instance_event is not None:
            logger.warning("%s: %s", failed.name, failed.error)
            self._tell_failed(self._instance(worker), failed)
            return
        if self._ended:
            logger.warning("%s", self._report.later(failed))
            return
        self._report.on_failed(worker, failed, asyncio.get_running_loop().time())
        self._look()

    def _on_event(self, event: RuntimeEvent) -> None:
        if self._on_instance_event is not None and isinstance(event, WorkersLost):
            self._tell_lost(event)
            return
        if self._ended:
            logger.warning("%s", self._report.later(event))
            return
        self._report.on_event(event, asyncio.get_running_loop().time())
        self._look()

    def _look(self) -> None:
        """Ends the service once it is known why; looks again when it may be."""
        if self._ended or self._closing:
            return
        loop = asyncio.get_running_loop()
        error, due_s = self._report.verdict(loop.time()), self._report.due_s()
        if error is not None:
            self._ended = True
            self._inbox.put_nowait(error)
        elif due_s is not None:
            loop.call_at(due_s, self._look)
