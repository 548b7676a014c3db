"""What those whose tokens are under way notice of instances that die, hang, come and go.

    python -m benchmarks.elasticity --json benchmarks/results/elasticity.json

Claim: no request fails and no token is lost, doubled or changed, whichever instance is killed in
whichever phase, and however the pools are resized.

Every shape serves streams over shared memory, greedy and seeded ones. Their tokens are compared
with those of the same service before its first fault. Instances are killed, or stopped, at moments
that `--seed` draws; a failure is printed with that seed, the number of the kill and the phase.
Added gaps are the longest gap of each stream around an event, less the median gap of the run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from benchmarks.support.program import Result, flag, main
from benchmarks.support.steady_load import SteadyLoad

from janus_moe.cluster.supervisor import Cluster
from janus_moe.config import EngineConfig
from janus_moe.errors import JanusError
from janus_moe.profiling.live import running

PHASES = ("serving", "prefill", "rebalancing", "opening", "committing", "draining", "recovering")
SIZES = ((2, 4), (1, 2), (3, 3), (1, 1))
"""(attention, expert) of a round of resizing, which begins with the last one."""
LATE_S = 60.0
"""Longest wait for a change or for streams before it counts as a hang, seconds."""
PROVOKE_S = 4.0
"""Longest wait for a phase in which an instance is to be killed, seconds."""


class Event(NamedTuple):
    """Something that was done to a service.

    kind: groups the figures.
    phase: of the service at that moment.
    at: `time.monotonic` seconds.
    """

    kind: str
    phase: str
    at: float


class Trial:
    """One service under load, and what is done to it.

    shape: (attention, expert) at the start.
    seed: of all draws.
    """

    def __init__(self, options: argparse.Namespace, shape: tuple[int, int], seed: int) -> None:
        self._options = options
        self._shape = shape
        self._seed = seed
        self._random = random.Random(seed)
        self.events: list[Event] = []
        self.hangs: list[str] = []
        self.detections: list[float] = []

    async def run(self, act: Callable[[Trial], Any]) -> dict[str, Any]:
        config = EngineConfig(
            model=self._options.model,
            attention_instances=self._shape[0],
            expert_instances=self._shape[1],
            transport="shm",
            max_model_len=512,
            max_attention_instances=4,
            max_expert_instances=4,
            max_restarts=1_000_000,
            kv_cache_memory_bytes=self._options.kv_cache_bytes,
        )
        async with running(config) as service:
            self.service = service
            options = self._options
            self.load = SteadyLoad(service, options.streams, options.tokens, self.describe)
            await self.load.start()
            await asyncio.sleep(1.0)
            try:
                await act(self)
                if not await self.load.all_end(LATE_S):
                    self._hang("streams do not end")
            finally:
                await self.load.stop()
        return self._found()

    async def kill(self, signal_number: signal.Signals) -> None:
        """Hits one instance in a drawn phase, and waits until all capacity is back."""
        wanted = "serving" if signal_number == signal.SIGSTOP else self._random.choice(PHASES)
        phase = await self._provoke(wanted)
        name, pid = self._random.choice(sorted(self._pids.items()))
        kind = self._kind(name)
        self.events.append(Event(kind, phase, time.monotonic()))
        os.kill(pid, signal_number)
        since = time.monotonic()
        if not await self._until(lambda: pid not in self._pids.values(), LATE_S):
            self._hang(f"the end of {name} (process {pid}) was not noticed")
        elif signal_number == signal.SIGSTOP:
            self.detections.append(time.monotonic() - since)
        await self._whole_again()
        await self.resize(*self._shape)

    async def resize(self, attention: int, expert: int) -> None:
        """Asks for sizes that the service may have already, and waits until it has them."""
        if self._sizes() == (attention, expert) and self._phase == "serving":
            return
        self.events.append(Event("resize", self._phase, time.monotonic()))
        if self._ask(attention, expert, 5.0):
            await self._whole_again()
        if self._sizes() != (attention, expert):
            self._hang(f"did not become {attention}A{expert}E")

    def describe(self) -> str:
        """Where this trial is, for a failure to be replayed."""
        status = self.service.engine.scale_controller.status()  # type: ignore[union-attr]
        last = self.events[-1:] and self.events[-1]
        return f"seed {self._seed}, event {len(self.events)} {last}, {status}"

    async def _provoke(self, wanted: str) -> str:
        """Brings about a phase, as far as that succeeds, and returns the one that there is."""
        await asyncio.sleep(self._random.uniform(0.0, 0.6))
        if wanted == "rebalancing":
            await self._rebalance()
        elif wanted == "recovering":
            os.kill(self._random.choice(sorted(self._pids.values())), signal.SIGKILL)
            await self._until(lambda: self._phase in ("fencing", "waiting", "opening"))
        elif wanted in ("opening", "committing", "draining"):
            sizes = [size for size in ((1, 1), *SIZES) if size != self._sizes()]
            if wanted == "draining":
                sizes = [size for size in sizes if size[0] < self._shape[0]] or sizes
            self._ask(*self._random.choice(sizes), 1.0)
            await self._until(lambda: self._phase == wanted)
        elif wanted == "prefill":
            await self._until(self._prefilling)
        status = self._status
        if status["kind"] == "fault":
            return f"recovering: {status['phase']}"
        return wanted if wanted in ("prefill", "rebalancing") else str(status["phase"])

    async def _rebalance(self) -> None:
        rebalancer = self.service.rebalancer
        slots = [layer[::-1] for layer in rebalancer.placement.slots]
        try:
            await rebalancer.rebalance(slots)
        except JanusError:
            return  # refused while another change is under way
        await asyncio.sleep(self._random.uniform(0.0, 0.05))

    def _prefilling(self) -> bool:
        """Whether a request has no token yet."""
        return any(not request.token_ids for request in self.service.engine._requests.values())

    async def _whole_again(self) -> None:
        def is_whole() -> bool:
            status = self._status
            return status["phase"] == "serving" and not status["degraded"]

        if not await self._until(is_whole, LATE_S):
            self._hang("the pools are not whole again")

    async def _until(self, holds: Callable[[], bool], within_s: float = PROVOKE_S) -> bool:
        until = time.monotonic() + within_s
        while not holds():
            if time.monotonic() > until:
                return False
            await asyncio.sleep(0.001)
        return True

    def _ask(self, attention: int, expert: int, drain_timeout_s: float) -> bool:
        controller = self.service.engine.scale_controller
        assert controller is not None
        try:
            controller.scale(attention, expert, drain_timeout_s)
        except JanusError as error:
            print(f"{attention}A{expert}E was refused: {error}", file=sys.stderr)
            return False
        return True

    def _kind(self, name: str) -> str:
        """`attention`, or `expert` with whether another instance has every expert that it has."""
        pool, _, number = name.partition(" ")
        if pool == "attention":
            return pool
        members = [one["number"] for one in self._status["expert"]]
        if int(number) not in members:
            return "expert that is no member"
        rank = members.index(int(number))
        for layer in self.service.rebalancer.placement.slots:
            others = {e for i, held in enumerate(layer) if i != rank for e in held}
            if not set(layer[rank]) <= others:
                return "expert without living replicas"
        return "expert with living replicas"

    def _hang(self, what: str) -> None:
        self.hangs.append(f"{what}; {self.describe()}")
        print(f"HANG {self.hangs[-1]} {dict(self._pids)}", file=sys.stderr)

    @property
    def _pids(self) -> Mapping[str, int]:
        workers = self.service.tracer._workers
        assert isinstance(workers, Cluster)
        return workers.pids

    @property
    def _status(self) -> dict[str, Any]:
        controller = self.service.engine.scale_controller
        assert controller is not None
        return controller.status()

    @property
    def _phase(self) -> str:
        return str(self._status["phase"])

    def _sizes(self) -> tuple[int, int]:
        status = self._status
        return len(status["attention"]), len(status["expert"])

    def _found(self) -> dict[str, Any]:
        for failure in self.load.differing:
            print(f"FAILURE {failure}", file=sys.stderr)
        added: dict[str, list[float]] = {}
        usual = self.load.usual()
        for event in self.events:
            caused = (max(gap - usual, 0.0) for gap in self.load.longest_after(event.at))
            added.setdefault(event.kind, []).extend(caused)
        phases = Counter(event.phase for event in self.events if event.kind != "resize")
        return {
            "seed": self._seed,
            "events": len(self.events),
            "streams": self.load.completed,
            "differing": len(self.load.differing),
            "hangs": len(self.hangs),
            "median gap ms": 1e3 * usual,
            "load average": os.getloadavg()[0],
            "failures": [*self.load.differing, *self.hangs],
            "phases": dict(phases),
            "added ms": {kind: percentiles(gaps) for kind, gaps in added.items() if gaps},
            "detection ms": percentiles(self.detections) if self.detections else {},
        }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = 1e3 * np.percentile(seconds, (50, 99))
    return {"p50": float(p50), "p99": float(p99), "max": 1e3 * max(seconds), "n": len(seconds)}


def measure(options: argparse.Namespace) -> Result:
    rows = []
    shapes = [(int(shape[0]), int(shape[2])) for shape in options.shapes.split(",")]
    for shape in shapes:
        name = f"{shape[0]}A{shape[1]}E"
        for what, act in (("kill", kills(options.kills)), ("stop", stops(options.stops))):
            rows.append({"what": what, "shape": name} | run(options, shape, act))
    rows.append({"what": "resize", "shape": "1A1E"} | run(options, SIZES[-1], rounds(options)))
    return {
        "rows": rows,
        "differing": sum(row["differing"] for row in rows),
        "hangs": sum(row["hangs"] for row in rows),
    }


def run(
    options: argparse.Namespace, shape: tuple[int, int], act: Callable[[Trial], Any]
) -> dict[str, Any]:
    return asyncio.run(Trial(options, shape, options.seed).run(act))


def kills(number: int) -> Callable[[Trial], Any]:
    async def act(trial: Trial) -> None:
        for _ in range(number):
            await trial.kill(signal.SIGKILL)

    return act


def stops(number: int) -> Callable[[Trial], Any]:
    async def act(trial: Trial) -> None:
        for _ in range(number):
            await trial.kill(signal.SIGSTOP)

    return act


def rounds(options: argparse.Namespace) -> Callable[[Trial], Any]:
    async def act(trial: Trial) -> None:
        for _ in range(options.rounds):
            for size in SIZES:
                await trial.resize(*size)
            if not await trial.load.all_end(LATE_S):
                trial._hang("streams do not end after the return")

    return act


if __name__ == "__main__":
    main(
        __doc__,
        measure,
        flag("--model", default="bundled"),
        flag("--shapes", default="1A2E,2A3E,3A2E"),
        flag("--kills", type=int, default=60, help="per shape"),
        flag("--stops", type=int, default=5, help="per shape"),
        flag("--rounds", type=int, default=20, help="of resizing"),
        flag("--streams", type=int, default=16),
        flag("--tokens", type=int, default=120, help="per stream"),
        flag("--kv-cache-bytes", type=int, default=2**26, help="of each attention instance"),
        flag("--seed", type=int, default=1),
    )
