"""The programs of one instance, kept by plan and batch, and how long they take.

When they run is not known here (`ports`), nor which plan a step has (`plan_selection`).
"""

from __future__ import annotations

import time

from janus_moe.spec import ExchangePlanName
from janus_moe.tracing.durations import lower_quartile
from janus_moe.transport.exchange_plans import Topology, egate_programs
from janus_moe.transport.network.executor import BoundProgram, Executor

Programs = tuple[BoundProgram, BoundProgram]
_KEPT = 64


class ProgramCache:
    """The bound programs of one instance by plan and token counts."""

    def __init__(self, executor: Executor, topology: Topology) -> None:
        self._executor = executor
        self._topology = topology
        self._kept: dict[tuple[ExchangePlanName, tuple[int, ...]], Programs] = {}

    def of(self, plan: ExchangePlanName, counts: tuple[int, ...]) -> Programs:
        """(dispatch, reply) of a batch; counts: [attention instances] rows of each."""
        key = (plan, counts)
        if key not in self._kept:
            if len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            executor = self._executor
            dispatch, reply = egate_programs(plan, self._topology, counts, executor.rank)
            self._kept[key] = (executor.bind(dispatch), executor.bind(reply))
        return self._kept[key]


class StepClock:
    """Times the layer passes of a step, for the choice of the next plans."""

    def __init__(self) -> None:
        self._started = 0.0
        self._seconds: list[float] = []

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self) -> None:
        self._seconds.append(time.perf_counter() - self._started)

    def pop(self) -> float:
        """Of the step's layer passes, 0 for none; the first one also waits for the peers."""
        seconds, self._seconds = self._seconds, []
        return lower_quartile(seconds[1:] or seconds) if seconds else 0.0
