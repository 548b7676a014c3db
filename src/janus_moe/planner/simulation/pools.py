"""The attention pool of a simulation, between two decisions of scaling.

`CompiledPool` and `reference.PolicyPool` do the same with different code: the first for days of
simulated time, the second with the engine's own policy code. They know of no policy and no GPU.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from janus_moe.planner.simulation import state, steps
from janus_moe.planner.simulation.state import BatchLimits, Records
from janus_moe.planner.simulation.step_table import StepTable
from janus_moe.planner.simulation.workload import RequestTrace


class AttentionPool(Protocol):
    """requests, interval, log: see `state`; they fill as time passes."""

    requests: Records
    interval: NDArray[np.float64]
    instances: Records

    @property
    def log(self) -> NDArray[np.float64]: ...

    @property
    def now_s(self) -> float: ...

    @property
    def num_steps(self) -> int: ...

    @property
    def num_preemptions(self) -> int: ...

    def run(self, until_s: float, table: StepTable) -> bool:
        """Begins no step at `until_s` or later; True when all requests are done."""
        ...

    def activate(self, instance: int, kv_blocks: int) -> None:
        """The instance takes requests from now on; one that drains keeps its cache."""
        ...

    def drain(self, instance: int, now_s: float) -> None:
        """The instance takes no more requests; it is gone when it has none."""
        ...


class CompiledPool:
    """All of a step in compiled code. Prefixes are not reused: every prompt is computed."""

    def __init__(
        self,
        workload: RequestTrace,
        limits: BatchLimits,
        max_instances: int,
        interval_s: float,
        log_steps: int = 0,
    ) -> None:
        self._limits = limits
        self._pool = state.new_pool(
            workload, max_instances, limits.block_size, interval_s, log_steps
        )
        self.requests = state.new_requests(workload)
        self.interval, self.instances = self._pool.interval, self._pool.instances
        self._num_used = 0

    @property
    def now_s(self) -> float:
        return float(self._pool.clock["now_s"][0])

    @property
    def num_steps(self) -> int:
        return int(self._pool.clock["num_steps"][0])

    @property
    def num_preemptions(self) -> int:
        return int(self._pool.clock["num_preemptions"][0])

    @property
    def log(self) -> NDArray[np.float64]:
        return self._pool.log[: int(self._pool.clock["num_logged"][0])]

    def run(self, until_s: float, table: StepTable) -> bool:
        pool, used = self._pool, self._num_used  # a step looks at every instance it is given
        pool = pool._replace(instances=pool.instances[:used], crossing=pool.crossing[:used])
        status = steps.run(self.requests, pool, self._limits, table, float(until_s))
        return bool(status == state.DONE)

    def activate(self, instance: int, kv_blocks: int) -> None:
        here = self.instances[instance]
        if here["status"] == state.ABSENT:
            here["capacity"] = kv_blocks
        here["status"] = state.ACTIVE
        self._num_used = max(self._num_used, instance + 1)

    def drain(self, instance: int, now_s: float) -> None:
        here = self.instances[instance]
        empty = here["running"] + here["waiting"] == 0
        here["status"] = state.ABSENT if empty else state.DRAINING
        here["drained_s"] = now_s
