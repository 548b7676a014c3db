"""Whole services for tests: the real engine and instances, in threads or in processes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from janus_moe.cluster.message_router import OnMessage
from janus_moe.cluster.service import Service
from janus_moe.cluster.worker.exchanges import open_exchanges
from janus_moe.cluster.worker.hosted_instance import HostedInstance
from janus_moe.cluster.worker.worker_instances import (
    build_instances,
    wait_rule,
)
from janus_moe.cluster.worker_layout import setup_message, worker_layouts
from janus_moe.config import EngineConfig
from janus_moe.engine.engine import Engine
from janus_moe.errors import WorkerFailed
from janus_moe.experts.slot_filling import LoadPiece
from janus_moe.messages import (
    FromWorker,
    SamplingParams,
    Setup,
    ToInstance,
    TokenLogprob,
)
from janus_moe.model.piecewise import Piece
from janus_moe.spec import InstanceId
from janus_moe.transport import Exchange
from janus_moe.transport.network.rendezvous import MemoryRendezvous

START_TIMEOUT_S = 100.0


@dataclass(slots=True)
class Completion:
    """Everything one request produced."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int = 0


async def complete(
    engine: Engine,
    request_id: str,
    prompt_ids: Sequence[int],
    stop: Sequence[str] = (),
    **sampling: Any,
) -> Completion:
    """Runs one request to its end."""
    result = Completion()
    params = SamplingParams(**sampling)
    async for chunk in engine.submit(request_id, prompt_ids, params, tuple(stop)):
        result.text += chunk.text
        result.token_ids += chunk.token_ids
        result.logprobs += chunk.logprobs or ()
        result.prompt_logprobs = chunk.prompt_logprobs or result.prompt_logprobs
        result.finish_reason = chunk.finish_reason
        result.stop_reason = chunk.stop_reason
        result.num_cached_tokens += chunk.num_cached_tokens
    return result


@contextlib.asynccontextmanager
async def running(folder: Path, **settings: Any) -> AsyncIterator[Service]:
    """A service with real worker processes."""
    service = Service.prepare(EngineConfig(model=str(folder), **settings))
    ready = asyncio.Event()
    task = asyncio.create_task(service.run(ready))
    waiter = asyncio.create_task(ready.wait())
    async with asyncio.timeout(START_TIMEOUT_S):
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if task.done():
            task.result()
        yield service
    finally:
        waiter.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def running_in_threads(
    folder: Path, load_piece: LoadPiece = Piece.load, **settings: Any
) -> AsyncIterator[Engine]:
    """The same engine and instances in this process: quick to start, and `shm` still goes through
    shared memory and wake-ups. load_piece: how experts that move are read."""
    async with serving_in_threads(folder, load_piece, **settings) as service:
        yield service.engine


@contextlib.asynccontextmanager
async def serving_in_threads(
    folder: Path, load_piece: LoadPiece = Piece.load, **settings: Any
) -> AsyncIterator[Service]:
    """The service of `running_in_threads`."""
    service = Service.prepare(EngineConfig(model=str(folder), **settings))
    workers = ThreadWorkers(service, load_piece)
    ready = asyncio.Event()
    task = asyncio.create_task(service.serve(workers, ready))
    waiter = asyncio.create_task(ready.wait())
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield service
    finally:
        waiter.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await workers.close()


def begin(instances: Sequence[HostedInstance], setup: Setup, exchanges: Sequence[Exchange]) -> None:
    """Lets built instances serve with these exchanges of the setup's membership."""
    rule = wait_rule(setup)
    for instance in instances:
        instance.begin(instance.connect(setup, exchanges, rule), lambda: None)


class ThreadWorkers:
    """`engine.Workers` whose instances are threads of this process."""

    def __init__(self, service: Service, load_piece: LoadPiece) -> None:
        self.on_message: list[OnMessage] = []
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[FromWorker | WorkerFailed] = asyncio.Queue()
        rendezvous = MemoryRendezvous()
        setups = [setup_message(service.plan, layout) for layout in worker_layouts(service.plan)]

        def meet(setup: Setup) -> tuple[Exchange, ...]:
            return open_exchanges(setup, rendezvous, "127.0.0.1")

        with ThreadPoolExecutor(len(setups)) as pool:  # they wait for each other
            exchanges = list(pool.map(meet, setups))
        self._exchanges = [exchange for own in exchanges for exchange in own]
        self._instances: dict[InstanceId, HostedInstance] = {}
        for setup, exchange in zip(setups, exchanges, strict=True):
            built = build_instances(setup, self._emit, load_piece)
            begin(built, setup, exchange)
            self._instances |= {instance.id: instance for instance in built}
        self._threads = [
            threading.Thread(target=self._live, args=(instance,), daemon=True)
            for instance in self._instances.values()
        ]
        for thread in self._threads:
            thread.start()

    def send(self, message: ToInstance) -> None:
        self._instances[message.instance].post(message)

    async def receive(self) -> FromWorker:
        message = await self._queue.get()
        if isinstance(message, WorkerFailed):
            raise message
        for take in self.on_message:
            take(message)
        return message

    async def close(self) -> None:
        for instance in self._instances.values():
            instance.stop()
        for thread in self._threads:
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()
        for instance in self._instances.values():
            instance.release()
        for exchange in self._exchanges:
            await asyncio.to_thread(exchange.close)

    def _live(self, instance: HostedInstance) -> None:
        try:
            instance.serve(lambda error, _: self._fail(instance, error))
        except Exception as error:
            self._fail(instance, error)

    def _fail(self, instance: HostedInstance, error: Exception) -> None:
        kind = type(error).__name__
        self._emit(WorkerFailed(f"{instance.id} failed: {kind}: {error}"))

    def _emit(self, message: FromWorker | WorkerFailed) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, message)
