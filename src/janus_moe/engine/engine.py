"""The life of requests: admission, their streams, their end; which instances there are meanwhile.

One asyncio loop calls everything here. The engine does not know how workers are started or
reached (it is given them), why instances come and go, nor what HTTP is.
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
from janus_moe.engine.assignment import RequestAssignment
from janus_moe.engine.chunks import Status, TokenChunk
from janus_moe.engine.counters import EngineCounters
from janus_moe.engine.load import InstanceLoads
from janus_moe.engine.placement_controller import PlacementController
from janus_moe.engine.refusal import Refusal
from janus_moe.engine.request import RequestRecord
from janus_moe.engine.scale_controller import ScaleController
from janus_moe.engine.snapshot import EngineSnapshot
from janus_moe.engine.text.detokenizer import Detokenizer
from janus_moe.engine.text.stopping import StopStrings
from janus_moe.engine.text.tokenizer import Tokenizer
from janus_moe.errors import JanusError, OverloadedError, ServiceError, WorkerFailed
from janus_moe.messages import (
    FromWorker,
    NewTokens,
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
        """The next message of any worker but `Failed`.

        Raises ServiceError with the cause when the workers cannot go on.
        """

    async def close(self) -> None:
        """Stops all workers; returns when none is left."""


class Engine:
    """Serves requests through the workers it is given with `run`.

    membership: the instances that those workers are; others follow with `use_membership`.
    limits: what a request may ask for.
    placement_controller: what moves experts between the instances.
    scale_controller: what changes the instances; None where they stay.

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
        self.scale_controller: ScaleController | None = None
        self.status: Status = "loading"
        self.status_detail = "starting"
        self.refusal: Refusal | None = None
        self.counters = EngineCounters()
        self.loads = InstanceLoads(membership.attention, limits.cache_tokens)
        self._assignment = RequestAssignment(self.loads, spec.eos_token_ids, self._send)
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
            if not pump.done():
                warm_up.result()
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
        if self.refusal is not None:
            raise ServiceError(self.refusal.reason, self.refusal.retry_after_s)
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
        for record in self._requests.values():
            record.fail(ServiceError(reason))

    def refuse(self, reason: str, retry_after_s: float) -> None:
        """Refuses new requests until `accept`; those under way go on."""
        self.refusal = Refusal(reason, retry_after_s)

    def accept(self) -> None:
        """Takes new requests again."""
        self.refusal = None

    def fail_waiting(self, reason: str, retry_after_s: float | None = None) -> None:
        """Ends the streams of requests that no instance has, with an error that says why."""
        for record in self._assignment.waiting:
            self._fail(record, ServiceError(reason, retry_after_s))

    def fail_all(self, reason: str, retry_after_s: float | None = None) -> None:
        """Ends every stream with an error that says why; the service goes on."""
        for record in self._requests.values():
            self._fail(record, ServiceError(reason, retry_after_s))

    def use_membership(self, membership: Membership) -> None:
        """Serves with these instances from now on.

        New attention instances get requests, also those that wait for one. Requests of an instance
        that is no member any more are admitted elsewhere.
        """
        self.membership = membership
        self.counters.readmissions += self._assignment.use_members(membership.attention)

    def readmit(self, instance: InstanceId) -> int:
        """An attention instance is lost for ever: its requests are admitted elsewhere, or wait.

        Returns how many they are. Their streams go on with the next token.
        """
        num_requests = self._assignment.readmit(instance)
        self.counters.readmissions += num_requests
        return num_requests

    def drain_instance(self, instance: InstanceId) -> asyncio.Event:
        """An attention instance gets no more requests; the event is set once it has none."""
        return self._assignment.drain(instance)

    def resume_instance(self, instance: InstanceId) -> None:
        """An attention instance that was to be drained gets requests again."""
        self._assignment.resume(instance)

    def move_requests(self, instance: InstanceId) -> int:
        """Drains an attention instance at once: its requests are computed again elsewhere.

        Returns how many they are.
        """
        num_requests = self._assignment.move(instance)
        self.counters.readmissions += num_requests
        return num_requests

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
        record = self._open(request_id, prompt_ids, sampling, stop)
        try:
            self._assignment.admit(record, instance)
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
    ) -> RequestRecord:
        if sampling.seed is None:
            sampling = msgspec.structs.replace(sampling, seed=self._seeds.getrandbits(63))
        record = RequestRecord(
            request_id=request_id,
            prompt_ids=tuple(prompt_ids),
            sampling=sampling,
            detokenizer=Detokenizer(self.tokenizer, prompt_ids),
            stops=StopStrings(tuple(stop)),
        )
        self._requests[request_id] = record
        self._idle.clear()
        return record

    def _forget(self, record: RequestRecord) -> None:
        """The stream has ended; the worker is told when it does not know."""
        del self._requests[record.request_id]
        if not self._requests:
            self._idle.set()
        if not record.finished:
            record.finished = True
            self._assignment.abort(record)
        self._assignment.release(record)

    def _fail(self, record: RequestRecord, error: ServiceError) -> None:
        if not record.finished:
            self._assignment.abort(record)
            self._assignment.release(record)
            record.fail(error)

    def _send(self, message: ToInstance) -> None:
        assert self._workers is not None
        self._workers.send(message)

    async def _pump(self, workers: Workers) -> None:
        """Hands every worker message to the streams it concerns."""
        while True:
            match await workers.receive():
                case StepDone() as done:
                    self._on_step(done)
                case _:
                    pass  # late progress, and what concerns the placement

    def _on_step(self, done: StepDone) -> None:
        self.loads.report(done)
        self.counters.add(done, self.membership)
        for notice in done.notices:
            logger.info("%s", notice)
        for new in done.outputs:
            record = self._requests.get(new.request_id)
            if record is None or record.finished:
                continue  # its consumer has gone
            if not record.expects(new):
                self._drop(record, new)
                continue
            if record.unstarted_tokens:
                self._on_first(record)
            if record.push(new):
                self._assignment.abort(record)
            if record.finished:
                self._assignment.release(record)

    def _on_first(self, record: RequestRecord) -> None:
        """An admission of a request has its prompt in the cache."""
        if not record.started:
            self.counters.prompt_tokens += len(record.prompt_ids)
        self._assignment.started(record)

    def _drop(self, record: RequestRecord, new: NewTokens) -> None:
        """What comes from an earlier admission, or twice, is not believed.

        Where tokens are missing between what is known and what came, the request begins again.
        """
        self.counters.dropped_outputs += 1
        self.counters.generation_tokens -= len(new.token_ids)  # they come again, or have come
        if new.admission == record.admission and new.position > len(record.token_ids):
            logger.warning("tokens of request %s are missing; it begins again", record.request_id)
            self.counters.readmissions += 1
            self._assignment.again(record)

    async def _warm_up(self) -> None:
        """One tiny request per attention instance, so that users meet no compilation.

        Raises WorkerFailed naming the instances that have not answered within the deadline.
        """
        sampling = SamplingParams(max_tokens=WARM_UP_TOKENS, temperature=0, ignore_eos=True)
        length = min(WARM_UP_TOKENS, max(1, self.limits.max_model_len - WARM_UP_TOKENS))
        waiting = list(self.membership.attention)

        async def one(instance: InstanceId) -> None:
            name = f"warm-up-{instance.number}"
            stream = self._stream(name, [0] * length, sampling, (), instance)
            async with aclosing(stream) as chunks:
                async for _ in chunks:
                    pass
            waiting.remove(instance)

        timeout_s = self.config.startup_timeout
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*map(one, self.membership.attention))
        except TimeoutError:
            raise WorkerFailed(
                f"{', '.join(map(str, waiting))} did not answer the warm-up request within "
                f"{timeout_s:g} s; look at that worker's log, or raise --startup-timeout if it is "
                "only slow"
            ) from None
