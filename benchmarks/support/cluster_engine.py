"""The engine's side of `benchmarks.cluster`: services that it asks for steps, in one process.

    python -m benchmarks.support.cluster_engine ORDER    (the benchmark starts it, inside a host)

Orders come as lines of JSON on standard input, answers leave on standard output.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import msgspec
import numpy as np

from janus_moe.cluster.hosts.gathering import gather_hosts
from janus_moe.cluster.service import Service
from janus_moe.config import ClusterConfig, EngineConfig
from janus_moe.engine.counters import EngineCounters
from janus_moe.messages import SamplingParams, StepDone
from janus_moe.spec import Membership

PROMPT_TOKENS = 4
MARGIN_STEPS = 6
"""More steps than are measured: requests do not all begin with the same one."""


class Order(msgspec.Struct, frozen=True):
    """Services to start, all with the same pools.

    services: name -> exchange plan.
    attention, experts: instances of each pool.
    hosts: as in `--hosts`.
    listen: address at which the hosts' agents join.
    secret_file: as in `--cluster-secret-file`.
    max_batch: most requests at once.
    """

    services: dict[str, str]
    attention: int
    experts: int
    hosts: str
    listen: str
    secret_file: str
    max_batch: int


class Job(msgspec.Struct, frozen=True):
    """A batch that one service is to decode.

    batch: requests at once.
    steps: decode steps to measure.
    warm_up: further ones before them.
    """

    service: str
    batch: int
    steps: int
    warm_up: int = 0


class Answer(msgspec.Struct, frozen=True):
    """Medians over the steps with the whole batch.

    tpot_s, dispatch_s, combine_s: seconds of a step.
    num_steps: that were measured.
    batch: requests of attention instance 0.
    plans: exchange plan -> steps.
    """

    tpot_s: float = 0.0
    dispatch_s: float = 0.0
    combine_s: float = 0.0
    num_steps: int = 0
    batch: int = 0
    plans: dict[str, int] = {}


IN_TWO = " x2"
"""After a plan: steps in two micro-batches that take turns."""


class StepLog(EngineCounters):
    """Counters that also keep every step of attention instance 0, and when it was reported."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[float, StepDone]] = []

    def add(self, done: StepDone, membership: Membership) -> None:
        super().add(done, membership)
        if done.instance == membership.attention[0] and done.step_seconds > 0:
            self.steps.append((time.perf_counter(), done))


class Engines:
    """All services of an order."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._running: dict[str, Service] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await asyncio.gather(*(self._start(*item) for item in self._order.services.items()))

    async def _start(self, name: str, plan: Any) -> None:
        order = self._order
        per_instance = -(-order.max_batch // order.attention)
        config = EngineConfig(
            attention_instances=order.attention,
            expert_instances=order.experts,
            transport="gloo",
            exchange=plan.removesuffix(IN_TWO),
            micro_batch_threshold=2 if plan.endswith(IN_TWO) else 0,
            threads=1,
            max_model_len=256,
            max_num_seqs=per_instance,
            max_num_batched_tokens=max(per_instance * PROMPT_TOKENS, 64),
            prefix_caching="off",
            exchange_timeout=30.0,
            startup_timeout=240.0,
        )
        cluster = ClusterConfig(
            hosts=order.hosts, cluster_listen=order.listen, cluster_secret_file=order.secret_file
        )
        gathered = await gather_hosts(config, cluster, _tell_of_join)
        service = Service.prepare(config, gathered)
        ready = asyncio.Event()
        task = asyncio.create_task(service.run(ready))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            waiting.cancel()
            task.result()
        self._tasks.append(task)
        self._running[name] = service

    async def measure(self, job: Job) -> Answer:
        """All requests begin together and go on for the same number of tokens."""
        engine = self._running[job.service].engine
        log = StepLog()
        engine.counters = log
        rng = np.random.default_rng(job.batch)
        prompts = rng.integers(1, engine.spec.vocab_size, (job.batch, PROMPT_TOKENS)).tolist()
        length = job.warm_up + job.steps + MARGIN_STEPS
        sampling = SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True)

        async def one(index: int) -> None:
            name = f"{job.service}-{time.monotonic_ns()}-{index}"
            async for _ in engine.submit(name, prompts[index], sampling):
                pass

        await asyncio.gather(*(one(index) for index in range(job.batch)))
        return summary(log.steps, job.warm_up)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def summary(steps: Sequence[tuple[float, StepDone]], warm_up: int) -> Answer:
    """Sums up the steps with most tokens that follow one of these, but for the first `warm_up`."""
    most = max(len(done.outputs) for _, done in steps)
    whole = [
        (at - before, done)
        for (before, previous), (at, done) in pairwise(steps)
        if len(done.outputs) == len(previous.outputs) == most
    ]
    whole = whole[min(warm_up, len(whole) // 2) :]
    if not whole:
        raise RuntimeError(f"no two steps in a row had all {most} requests of the instance")
    plans: dict[str, int] = {}
    for _, done in whole:
        plans[done.exchange_plan] = plans.get(done.exchange_plan, 0) + 1
    return Answer(
        tpot_s=median(seconds for seconds, _ in whole),
        dispatch_s=median(done.dispatch_seconds for _, done in whole),
        combine_s=median(done.combine_seconds for _, done in whole),
        num_steps=len(whole),
        batch=most,
        plans=plans,
    )


def _tell_of_join(note: str) -> None:
    """The benchmark starts `janus worker` where the service says so."""
    if match := re.match(r"on (\S+): janus worker --join (\S+)", note):
        _say({"host": match.group(1), "join": match.group(2)})


def _say(value: Any) -> None:
    print(msgspec.json.encode(value).decode(), flush=True)


async def live(order: Order) -> None:
    engines = Engines(order)
    try:
        await engines.start()
        _say({"ready": True})
        while line := await asyncio.to_thread(sys.stdin.readline):
            _say(await engines.measure(msgspec.json.decode(line, type=Job)))
    finally:
        await engines.stop()


if __name__ == "__main__":
    asyncio.run(live(msgspec.json.decode(sys.argv[1], type=Order)))
