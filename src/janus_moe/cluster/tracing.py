"""Records what the instances of a running service do, and brings it together on one clock.

`Tracer` talks to the workers; `trace_decode` runs a small batch meanwhile. What becomes of the
spans is `chrome_trace`'s business.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from janus_moe.cluster.deployment_plan import DeploymentPlan, Host
from janus_moe.cluster.message_router import ObservableWorkers
from janus_moe.engine.engine import Engine, Workers
from janus_moe.errors import ConfigError, ServiceError
from janus_moe.messages import FromWorker, SamplingParams, Trace, Traced
from janus_moe.spec import InstanceId, Membership
from janus_moe.tracing import Span

PINGS = 5
ANSWER_S = 20.0
WARM_STEPS = 3


@dataclass(frozen=True, slots=True)
class InstanceTrace:
    """What one instance recorded.

    host: name of the host that runs it.
    spans: on the clock of the engine's host.
    """

    instance: InstanceId
    host: str
    spans: tuple[Span, ...]


class Tracer:
    """Starts and stops recording in all instances of one service. One asyncio loop uses it."""

    def __init__(self, plan: DeploymentPlan) -> None:
        self._plan = plan
        self._membership = plan.membership
        self._recorded: tuple[InstanceId, ...] = ()
        self._workers: Workers | None = None
        self._waiting: dict[InstanceId, asyncio.Future[Traced]] = {}
        self._offsets: dict[InstanceId, int] = {}

    def use(self, workers: ObservableWorkers) -> None:
        """Takes the workers to record, whose answers come here."""
        self._workers = workers
        workers.on_message.append(self._on_message)

    def use_membership(self, membership: Membership) -> None:
        """Records these instances from the next `start` on."""
        self._membership = membership

    async def start(self) -> None:
        """Returns once every instance records. Raises ServiceError when one does not answer."""
        self._recorded = self._membership.instances
        for instance in self._recorded:
            best_ns = None
            for _ in range(PINGS):
                before_ns = time.perf_counter_ns()
                answer = await self._ask(instance, recording=True)
                after_ns = time.perf_counter_ns()
                if best_ns is None or after_ns - before_ns < best_ns:
                    best_ns = after_ns - before_ns
                    self._offsets[instance] = answer.now_ns - (before_ns + after_ns) // 2
            if self._host_of(instance).share.is_local:
                self._offsets[instance] = 0  # one clock; a ping would only add its own error

    async def stop(self) -> list[InstanceTrace]:
        """What the instances that are still there recorded since `start`."""
        traces = []
        for instance in self._recorded:
            if instance not in self._membership.instances:
                continue
            spans = (await self._ask(instance, recording=False)).spans
            offset = self._offsets[instance]
            shifted = tuple(_shifted(span, -offset) for span in spans) if offset else spans
            host = self._host_of(instance).share.name
            traces.append(InstanceTrace(instance, host, shifted))
        return traces

    def _host_of(self, instance: InstanceId) -> Host:
        return self._plan.hosts[self._membership.host_of(instance)]

    async def _ask(self, instance: InstanceId, *, recording: bool) -> Traced:
        if self._workers is None:
            raise ServiceError("the service is not running")
        answer: asyncio.Future[Traced] = asyncio.get_running_loop().create_future()
        self._waiting[instance] = answer
        self._workers.send(Trace(instance=instance, recording=recording))
        try:
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except TimeoutError:
            raise ServiceError(
                f"{instance} did not answer the tracer within {ANSWER_S:.0f} s"
            ) from None

    def _on_message(self, message: FromWorker) -> None:
        if isinstance(message, Traced):
            answer = self._waiting.get(message.instance)
            if answer is not None and not answer.done():
                answer.set_result(message)


def require_room(engine: Engine, batch: int, prompt_tokens: int, steps: int) -> None:
    """Raises ConfigError where such a batch cannot be decoded; the engine need not be running."""
    needed = prompt_tokens + steps + WARM_STEPS
    room = min(engine.max_model_len, engine.limits.cache_tokens)
    if min(batch, prompt_tokens, steps) < 1 or needed > room:
        raise ConfigError(
            f"a batch of {batch} with {prompt_tokens} prompt tokens and {steps} steps: each at "
            f"least 1, and the context of {room} must hold {needed} tokens"
        )


async def trace_decode(
    engine: Engine, tracer: Tracer, batch: int, prompt_tokens: int, steps: int
) -> list[InstanceTrace]:
    """Decodes `batch` random prompts for at least `steps` steps and records all of it.

    Raises ConfigError when they do not fit.
    """
    require_room(engine, batch, prompt_tokens, steps)
    draw = random.Random(0)
    prompts = [
        [draw.randrange(engine.spec.vocab_size) for _ in range(prompt_tokens)] for _ in range(batch)
    ]
    sampling = SamplingParams(max_tokens=steps + WARM_STEPS, temperature=0, ignore_eos=True)
    await _complete(engine, prompts, sampling, "warm")  # programs, buffers and caches
    await tracer.start()
    await _complete(engine, prompts, sampling, "trace")
    return await tracer.stop()


async def _complete(
    engine: Engine, prompts: Sequence[Sequence[int]], sampling: SamplingParams, name: str
) -> None:
    async def one(index: int) -> None:
        async for _ in engine.submit(f"{name}-{index}", prompts[index], sampling):
            pass

    await asyncio.gather(*(one(index) for index in range(len(prompts))))


def _shifted(span: Span, by_ns: int) -> Span:
    return msgspec.structs.replace(span, start_ns=span.start_ns + by_ns, end_ns=span.end_ns + by_ns)
