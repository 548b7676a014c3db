"""A workload through a policy of scaling: decisions, changes under way, and who holds which GPU.

A change works like this. At the decision the added GPUs are taken and load; the old deployment
serves on. When all is loaded the new deployment's steps begin: added attention instances take
requests, superfluous ones take no more and are given back when their last request ends, superfluous
expert instances at once. One change at a time. Only sums of GPU time are kept here; `report`
makes figures of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from janus_moe.errors import ConfigError
from janus_moe.planner.simulation import state
from janus_moe.planner.simulation.deployment import SimDeployment
from janus_moe.planner.simulation.pools import AttentionPool, CompiledPool
from janus_moe.planner.simulation.scaling import (
    Loading,
    ObservedDemand,
    ScalingPolicy,
    ScalingTarget,
)
from janus_moe.planner.simulation.state import BatchLimits, Records
from janus_moe.planner.simulation.workload import RequestTrace

PoolFactory = Callable[[RequestTrace, BatchLimits, int, float, int], AttentionPool]
"""(workload, limits, most instances, interval, steps to log); `CompiledPool` or `PolicyPool`."""


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """When policies decide.

    interval_s: between decisions, and of the report.
    check_s: between looks at the load.
    on_load: decide before the interval is over when a look finds this many times the rate, or the
        requests under way, that the last decision saw; None means never.
    look_back_s: how far back policies see the rate of each minute; None means to the last decision.
    """

    interval_s: float = 900.0
    check_s: float = 60.0
    on_load: float | None = None
    look_back_s: float | None = None
    max_instances: int = 256
    log_steps: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.check_s <= self.interval_s:
            raise ConfigError(
                f"decisions every {self.interval_s} s with looks every {self.check_s} s; expected "
                "above 0, and the looks at least as often"
            )
        if self.on_load is not None and not self.on_load > 1:
            raise ConfigError(f"deciding on load needs a factor above 1, got {self.on_load}")
        if self.look_back_s is not None and not self.look_back_s > 0:
            raise ConfigError(
                f"rates are looked back at over more than 0 s, got {self.look_back_s}"
            )


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A change of deployment, or that there is none.

    decided_s, serving_s: when it was made, and when the deployment began to serve.
    how: its style.
    enough: whether the policy expected it to meet the demand.
    """

    decided_s: float
    serving_s: float
    deployment: str
    how: str
    num_gpus: int
    enough: bool
    demand: ObservedDemand


@dataclass(frozen=True, eq=False, kw_only=True)
class Simulation:
    """What happened.

    gpu_changes: (time, GPUs taken or, negative, given back), by time.
    requests, interval, log: see `state`.
    end_s: the last request ends.
    num_short: times that the policy knew of nothing that meets the demand.
    """

    policy: str
    lines: tuple[str, ...]
    workload: RequestTrace
    timing: SimulationSettings
    requests: Records
    interval: NDArray[np.float64]
    log: NDArray[np.float64]
    decisions: tuple[Decision, ...]
    gpu_changes: tuple[tuple[float, int], ...]
    end_s: float
    num_steps: int
    num_preemptions: int
    num_short: int


def simulate(
    workload: RequestTrace,
    policy: ScalingPolicy,
    timing: SimulationSettings | None = None,
    loading: Loading | None = None,
    new_pool: PoolFactory = CompiledPool,
) -> Simulation:
    """Runs until every request has ended. The first decision sees the first interval's demand, as
    if it had been like that before, and is in force at once."""
    timing = timing or SimulationSettings()
    run = _Run(workload, policy, timing, loading or Loading(), new_pool)
    while not run.advance():
        pass
    return run.result()


def demand_between(
    workload: RequestTrace,
    start_s: float,
    end_s: float,
    before: ObservedDemand | None = None,
    look_back_s: float | None = None,
) -> ObservedDemand:
    """What arrives in [start_s, end_s), as if no request were there.

    before: its lengths are taken where nothing arrives.
    look_back_s: of the minutes, if it is more.
    """
    start_s = max(start_s, 0.0)
    first, last = np.searchsorted(workload.arrival_s, [start_s, end_s])
    minutes = _minute_rates(workload, min(start_s, max(0.0, end_s - (look_back_s or 0.0))), end_s)
    if first == last:
        lengths = (before.prompt_tokens, before.output_tokens) if before else (1.0, 1.0)
        return ObservedDemand(0.0, minutes, *lengths, 0)
    return ObservedDemand(
        requests_per_s=float(last - first) / (end_s - start_s),
        minute_rates=minutes,
        prompt_tokens=float(workload.prompt_tokens[first:last].mean()),
        output_tokens=float(workload.output_tokens[first:last].mean()),
        num_present=0,
    )


def _minute_rates(workload: RequestTrace, start_s: float, end_s: float) -> tuple[float, ...]:
    """Requests per second of each whole minute, or of all of a shorter time."""
    width = min(60.0, end_s - start_s)
    edges = np.arange(start_s, end_s + 1e-9, width)
    counts = np.diff(np.searchsorted(workload.arrival_s, edges))
    return tuple((counts / width).tolist())


@dataclass
class _Change:
    deployment: SimDeployment
    serving_s: float


@dataclass
class _Run:
    workload: RequestTrace
    policy: ScalingPolicy
    timing: SimulationSettings
    loading: Loading
    new_pool: PoolFactory
    decisions: list[Decision] = field(default_factory=list)
    gpu_changes: list[tuple[float, int]] = field(default_factory=list)
    change: _Change | None = None

    def __post_init__(self) -> None:
        timing = self.timing
        demand = self._demand(0.0, timing.interval_s)
        choice = self.policy.decide(0.0, demand, None)
        first = choice.deployment
        self.current = first
        self.pool = self.new_pool(
            self.workload, first.limits, timing.max_instances, timing.interval_s, timing.log_steps
        )
        self.draining: dict[int, int] = {}
        self._resize(first, 0.0, first.size.attention_tp)
        self.gpu_changes.append((0.0, first.num_gpus))
        self.decisions.append(_decision(0.0, 0.0, choice, demand))
        self.num_short = int(not choice.enough)
        self.seen = demand
        self.next_decision_s, self.next_check_s = timing.interval_s, timing.check_s

    def advance(self) -> bool:
        """To the next moment at which something may be decided or changed; True at the end."""
        until = self.next_check_s
        if self.change:
            until = min(until, self.change.serving_s)
        done = self.pool.run(until, self.current.table)
        self._give_back_drained()
        if done:
            return True
        if self.change and self.change.serving_s <= until:
            self._switch(self.change)
        if until >= self.next_check_s:
            self._look(until)
        return False

    def result(self) -> Simulation:
        pool, end_s = self.pool, self.pool.now_s
        held = sum(delta for _, delta in self.gpu_changes)
        changes = [*self.gpu_changes, (end_s, -held)]
        return Simulation(
            policy=self.policy.name,
            lines=self.policy.lines,
            workload=self.workload,
            timing=self.timing,
            requests=pool.requests,
            interval=pool.interval,
            log=pool.log,
            decisions=tuple(self.decisions),
            gpu_changes=tuple(sorted((min(time, end_s), delta) for time, delta in changes)),
            end_s=end_s,
            num_steps=pool.num_steps,
            num_preemptions=pool.num_preemptions,
            num_short=self.num_short,
        )

    def _look(self, now_s: float) -> None:
        self.next_check_s = now_s + self.timing.check_s
        due = now_s >= self.next_decision_s
        if not due and self.timing.on_load is not None and not self.change:
            recent, factor = self._demand(now_s - self.timing.check_s, now_s), self.timing.on_load
            due = (
                recent.requests_per_s > factor * self.seen.requests_per_s
                or recent.num_running > factor * max(self.seen.num_running, 1)
            )
        if not due or self.change:
            return
        early = now_s < self.next_decision_s
        window = self.timing.check_s if early else self.timing.interval_s
        demand = self._demand(now_s - window, now_s)
        self.next_decision_s = now_s + self.timing.interval_s
        self.seen = demand
        choice = self.policy.decide(now_s, demand, self.current)
        wanted = choice.deployment
        self.num_short += not choice.enough
        if wanted.same_as(self.current):
            return
        serving_s = now_s + self.loading.change_s(self.current, wanted)
        added = (
            max(0, wanted.size.num_attention_gpus - self.current.size.num_attention_gpus),
            max(0, wanted.size.num_expert - self.current.size.num_expert),
        )
        self.gpu_changes.append((now_s, sum(added)))
        self.decisions.append(_decision(now_s, serving_s, choice, demand))
        self.change = _Change(wanted, serving_s)

    def _switch(self, change: _Change) -> None:
        now_s, old, new = change.serving_s, self.current, change.deployment
        self.gpu_changes.append((now_s, -max(0, old.size.num_expert - new.size.num_expert)))
        each = old.size.attention_tp
        if each != new.size.attention_tp:  # other GPUs share attention: none waits for an instance
            spare = max(0, old.size.num_attention_gpus - new.size.num_attention_gpus)
            self.gpu_changes.append((now_s, -spare))
            each = 0
        self._resize(new, now_s, each)
        self.current, self.change = new, None

    def _resize(self, deployment: SimDeployment, now_s: float, each: int) -> None:
        """Attention instances: draining ones come back first, those with least to do go first.

        each: GPUs that an instance gives back when it is gone.
        """
        instances = self.pool.instances
        active = np.flatnonzero(instances["status"] == state.ACTIVE)
        missing = deployment.size.num_attention - len(active)
        back = sorted(self.draining)[: max(missing, 0)]
        absent = np.flatnonzero(instances["status"] == state.ABSENT)
        new = absent[: max(missing - len(back), 0)].tolist()
        if missing > len(back) + len(new):
            raise ConfigError(
                f"{deployment.name} needs more than {len(instances)} attention instances, drained "
                "ones included; allow more with max_instances"
            )
        for instance in (*back, *new):
            self.pool.activate(instance, deployment.kv_blocks)
        if back:  # they were never given back, and the change has taken GPUs for them
            self.gpu_changes.append((now_s, -sum(self.draining.pop(one) for one in back)))
        present = instances["running"][active] + instances["waiting"][active]
        order = np.lexsort((-active, present))
        for instance in active[order[: max(-missing, 0)]].tolist():
            self.pool.drain(instance, now_s)
            self.draining[instance] = each
        self._give_back_drained()

    def _give_back_drained(self) -> None:
        instances = self.pool.instances
        for instance in sorted(self.draining):
            if instances["status"][instance] == state.ABSENT:
                gpus = self.draining.pop(instance)
                self.gpu_changes.append((float(instances["drained_s"][instance]), -gpus))

    def _demand(self, start_s: float, end_s: float) -> ObservedDemand:
        before = self.decisions[-1].demand if self.decisions else None
        demand = demand_between(self.workload, start_s, end_s, before, self.timing.look_back_s)
        if before is None:
            return demand
        running, waiting = (int(self.pool.instances[name].sum()) for name in ("running", "waiting"))
        return demand._replace(num_present=running + waiting, num_waiting=waiting)


def _decision(
    decided_s: float, serving_s: float, choice: ScalingTarget, demand: ObservedDemand
) -> Decision:
    return Decision(
        decided_s=decided_s,
        serving_s=serving_s,
        deployment=choice.deployment.name,
        how=choice.deployment.how,
        num_gpus=choice.deployment.num_gpus,
        enough=choice.enough,
        demand=demand,
    )
