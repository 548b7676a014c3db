"""The life of requests: admission, the attention instance they go to, their streams, their end.

One asyncio loop calls everything here. The engine does not know how workers are started or
reached (it is given them), nor what HTTP is.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Protocol

import msgspec

from janus_moe.config import EngineConfig
from janus_moe.engine.admission import RequestLimits, admit
from janus_moe.engine.chunks import Status, TokenChunk
from janus_moe.engine.counters import EngineCounters
from janus_moe.engine.load import InstanceLoads
from janus_moe.engine.placement_controller import PlacementController
from janus_moe.engine.request import RequestRecord
from janus_moe.engine.snapshot import EngineSnapshot
from janus_moe.engine.text.detokenizer import Detokenizer
from janus_moe.engine.text.stopping import StopStrings
from janus_moe.engine.text.tokenizer import Tokenizer
from janus_moe.errors import JanusError, OverloadedError, ServiceError, WorkerFailed
from janus_moe.messages import (
    AbortRequest,
    AddRequest,
    Failed,
    FromWorker,
    SamplingParams,
    StepDone,
    ToInstance,
)
from janus_moe.spec import InstanceId, Membership, ModelSpec

logger = logging.getLogger(__name__)

WARM_UP_TOKENS = 2


class Workers(Protocol):
    """The running attention and expert instances, as far as the engine needs them."""

    def send(self, message: ToInstance) -> None:
        """Sends a message to the instance it is for."""

    async def receive(self) -> FromWorker:
        """The next message of any worker; raises ServiceError when the workers cannot go on."""

    async def close(self) -> None:
        """Stops all workers; returns when none is left."""


class Engine:
    """Serves requests through the workers it is given with `run`.

    membership: the instances that those workers are.
    limits: what a request may ask for.
    placement_controller: what moves experts between the instances.

    Before `run` the status is "loading" and requests are refused. When a worker is lost `run`
    raises, and the service that ran it marks the engine "dead".
    """

    def __init__(
        self,
        config: EngineConfig,
        spec: ModelSpec,
        tokenizer: Tokenizer,
        limits: RequestLimits,
        membership: Membership,
        placement_controller: PlacementController,
    ) -> None:
        self.config = config
        self.spec = spec
        self.tokenizer = tokenizer
        self.limits = limits
        self.membership = membership
        self.placement_controller = placement_controller
        self.status: Status = "loading"
        self.status_detail = "starting"
        self.counters = EngineCounters()
        self.loads = InstanceLoads(membership.attention, limits.cache_tokens)
        self._workers: Workers | None = None
        self._requests: dict[str, RequestRecord] = {}
        self._seeds = random.Random(config.seed or None)
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def max_model_len(self) -> int:
        return self.limits.max_model_len

    async def run(self, workers: Workers, on_ready: asyncio.Event | None = None) -> None:
        """Warms the workers up, then serves until cancelled or a worker is lost.

        Raises ServiceError when the service has ended by itself.
        """
        self._workers = workers
        pump = asyncio.create_task(self._pump(workers))
        warm_up = asyncio.create_task(self._warm_up())
        try:
            await asyncio.wait({pump, warm_up}, return_when=asyncio.FIRST_COMPLETED)
            if warm_up.done() and warm_up.exception() is None and not pump.done():
                self.status, self.status_detail = "ready", "ready"
                self.counters = EngineCounters()
                if on_ready is not None:
                    on_ready.set()
            await pump
        finally:
            for task in (pump, warm_up):
                task.cancel()
            await asyncio.gather(pump, warm_up, return_exceptions=True)

    async def submit(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        stop: Sequence[str] = (),
    ) -> AsyncGenerator[TokenChunk]:
        """Chunks of one request until its finish reason; closing the generator aborts it.

        Raises RequestError, OverloadedError or ServiceError, at once or in mid-stream.
        """
        if self.status != "ready":
            raise ServiceError(f"the service is {self.status}: {self.status_detail}")
        if len(self._requests) >= self.config.max_queue:
            raise OverloadedError(f"{len(self._requests)} requests are queued already")
        admit(prompt_ids, sampling, self.limits)
        async with aclosing(self._stream(request_id, prompt_ids, sampling, stop)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def drain(self, timeout_s: float) -> bool:
        """Refuses new requests and waits for those under way; False when some remain."""
        if self.status == "ready":
            self.status, self.status_detail = "draining", "shutting down"
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return self._idle.is_set()

    def mark_dead(self, reason: str) -> None:
        """Ends every stream with an error that says why; new requests are refused."""
        self.status, self.status_detail = "dead", reason
        for record in list(self._requests.values()):
            record.fail(ServiceError(reason))

    def snapshot(self) -> EngineSnapshot:
        """Load and totals at this moment."""
        loads = self.loads.observed
        running = sum(load.num_running for load in loads.values())
        waiting = max(0, len(self._requests) - running)
        return self.counters.snapshot(self.membership, loads, waiting)

    async def _stream(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        stop: Sequence[str],
        instance: InstanceId | None = None,
    ) -> AsyncGenerator[TokenChunk]:
        assert self._workers is not None
        record = self._open(request_id, prompt_ids, sampling, stop, instance)
        try:
            self._workers.send(
                AddRequest(
                    instance=record.instance,
                    request_id=request_id,
                    prompt_ids=record.prompt_ids,
                    sampling=record.sampling,
                    eos_token_ids=self.spec.eos_token_ids,
                )
            )
            while True:
                chunk = await record.chunks.get()
                if isinstance(chunk, JanusError):
                    raise chunk
                yield chunk
                if chunk.finish_reason is not None:
                    return
        finally:
            self._forget(record)

    def _open(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        stop: Sequence[str],
        instance: InstanceId | None,
    ) -> RequestRecord:
        if sampling.seed is None:
            sampling = msgspec.structs.replace(sampling, seed=self._seeds.getrandbits(63))
        if instance is None:
            instance = self.loads.choose(prompt_ids)
        record = RequestRecord(
            request_id=request_id,
            prompt_ids=tuple(prompt_ids),
            sampling=sampling,
            instance=instance,
            detokenizer=Detokenizer(self.tokenizer, prompt_ids),
            stops=StopStrings(tuple(stop)),
        )
        self._requests[request_id] = record
        self._idle.clear()
        self.loads.sent(instance, len(prompt_ids))
        return record

    def _forget(self, record: RequestRecord) -> None:
        """The stream has ended; the worker is told when it does not know."""
        del self._requests[record.request_id]
        self.loads.ended(record.instance)
        if not record.started:
            self.loads.started(record.instance, len(record.prompt_ids))
        if not self._requests:
            self._idle.set()
        if not record.finished:
            record.finished = True
            with suppress(ServiceError):  # a worker that is gone has forgotten it already
                self._abort(record)

    def _abort(self, record: RequestRecord) -> None:
        assert self._workers is not None
        self._workers.send(AbortRequest(instance=record.instance, request_id=record.request_id))

    async def _pump(self, workers: Workers) -> None:
        """Hands every worker message to the streams it concerns."""
        while True:
            match await workers.receive():
                case StepDone() as done:
                    self._on_step(done)
                case Failed(name=name, error=error):
                    raise WorkerFailed(f"{name} failed: {error}")
                case _:
                    pass  # late progress, and what concerns the placement

    def _on_step(self, done: StepDone) -> None:
        self.loads.report(done)
        self.counters.add(done, self.membership)
        for notice in done.notices:
            logger.info("%s", notice)
        for new in done.outputs:
            record = self._requests.get(new.request_id)
            if record is None:
                continue  # its consumer has gone
            if not record.started:
                record.started = True
                self.loads.started(record.instance, len(record.prompt_ids))
                self.counters.prompt_tokens += len(record.prompt_ids)
            if record.push(new):
                self._abort(record)

    async def _warm_up(self) -> None:
        """One tiny request per attention instance, so that users meet no compilation."""
        sampling = SamplingParams(max_tokens=WARM_UP_TOKENS, temperature=0, ignore_eos=True)
        length = min(WARM_UP_TOKENS, max(1, self.limits.max_model_len - WARM_UP_TOKENS))

        async def one(instance: InstanceId) -> None:
            name = f"warm-up-{instance.number}"
            stream = self._stream(name, [0] * length, sampling, (), instance)
            async with aclosing(stream) as chunks:
                async for _ in chunks:
                    pass

        await asyncio.gather(*map(one, self.membership.attention))
