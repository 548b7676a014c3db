"""Figures of a simulation, under the names that vLLM's benchmark gives them.

Equal simulations give equal bytes of JSON. Times are in ms where the name says so, else in s.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from janus_moe.errors import ConfigError
from janus_moe.planner.simulation import state
from janus_moe.planner.simulation.simulate import Decision, Simulation

PERCENTILES = (90, 99)


@dataclass(frozen=True, kw_only=True)
class LatencyObjective:
    """What a request may take.

    tpot_s: of a request's mean time per output token.
    ttft_s: None for no objective.
    """

    tpot_s: float
    ttft_s: float | None = None

    def __post_init__(self) -> None:
        for name, limit in (("TPOT", self.tpot_s), ("TTFT", self.ttft_s)):
            if limit is not None and not 0 < limit < np.inf:
                raise ConfigError(f"the {name} objective must be above 0 ms, got {1e3 * limit:g}")


@dataclass(frozen=True, kw_only=True)
class IntervalReport:
    """What happened in one interval.

    arrived: requests; `attained` is the share of those that met the objective.
    gpus: mean number held.
    batch: mean sequences in a step.
    busy: share of time inside steps.
    """

    start_s: float
    arrived: int
    request_rate: float
    output_throughput: float
    mean_step_ms: float | None
    attained: float | None
    gpus: float
    batch: float
    busy: float


@dataclass(frozen=True, kw_only=True)
class SimulationReport:
    """What a simulation shows, as plain values.

    figures: vLLM's keys and ours.
    configuration: lines of the policy.
    intervals, decisions: in order of time.
    """

    policy: str
    workload: str
    configuration: tuple[str, ...]
    figures: dict[str, float | int | None]
    intervals: tuple[IntervalReport, ...]
    decisions: tuple[Decision, ...]

    def to_json(self) -> str:
        content: dict[str, Any] = {"policy": self.policy, "workload": self.workload}
        content |= {"configuration": self.configuration, **self.figures}
        content["intervals"] = [asdict(one) for one in self.intervals]
        content["decisions"] = [
            {**asdict(one), "demand": one.demand.as_dict()} for one in self.decisions
        ]
        return json.dumps(content, indent=1, allow_nan=False) + "\n"


def make_report(simulation: Simulation, objective: LatencyObjective) -> SimulationReport:
    """duration: from the first arrival's clock zero to the last end."""
    requests, duration = simulation.requests, simulation.end_s
    done = ~np.isnan(requests["finish_s"])
    ended = requests[done]
    ttft = ended["first_s"] - ended["arrival_s"]
    several = ended["output"] > 1
    tpot = (ended["finish_s"] - ended["first_s"])[several] / (ended["output"][several] - 1)
    in_time, first_in_time = _attained(simulation, objective)
    good = in_time & first_in_time
    output = int(ended["output"].sum())
    gpu_s = float(-sum(time * delta for time, delta in simulation.gpu_changes))
    span = max(duration, 1e-9)
    figures: dict[str, float | int | None] = {
        "duration": duration,
        "completed": len(ended),
        "rejected": int((requests["instance"] == state.REJECTED).sum()),
        "skipped": simulation.workload.num_skipped,
        "total_input_tokens": int(ended["prompt"].sum()),
        "total_output_tokens": output,
        "request_throughput": len(ended) / span,
        "request_goodput": float(good.sum()) / span,
        "output_throughput": output / span,
        "total_token_throughput": (output + int(ended["prompt"].sum())) / span,
        **_spread("ttft", ttft),
        **_spread("tpot", tpot),
        **_spread("e2el", ended["finish_s"] - ended["arrival_s"]),
        "slo_tpot_ms": objective.tpot_s * 1e3,
        "slo_ttft_ms": None if objective.ttft_s is None else objective.ttft_s * 1e3,
        "slo_attainment": float(good.mean()),
        "slo_tpot_attainment": float(in_time.mean()),
        "slo_ttft_attainment": None if objective.ttft_s is None else float(first_in_time.mean()),
        "gpu_hours": gpu_s / 3600,
        "output_tokens_per_gpu_s": output / max(gpu_s, 1e-9),
        "max_gpus": _most_gpus(simulation),
        "num_decisions": len(simulation.decisions),
        "num_short": simulation.num_short,
        "num_steps": simulation.num_steps,
        "num_preemptions": simulation.num_preemptions,
    }
    return SimulationReport(
        policy=simulation.policy,
        workload=simulation.workload.name,
        configuration=simulation.lines,
        figures=figures,
        intervals=_intervals(simulation, good),
        decisions=simulation.decisions,
    )


def _spread(name: str, seconds: NDArray[np.float64]) -> dict[str, float | None]:
    keys = ["mean", "median", "std", *(f"p{p}" for p in PERCENTILES)]
    if not len(seconds):
        return {f"{key}_{name}_ms": None for key in keys}
    ms = seconds * 1e3
    values = [ms.mean(), np.median(ms), ms.std(), *np.percentile(ms, PERCENTILES)]
    return {f"{key}_{name}_ms": float(v) for key, v in zip(keys, values, strict=True)}


def _attained(
    simulation: Simulation, objective: LatencyObjective
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Two times [requests]: TPOT, TTFT; one that was rejected has neither."""
    requests = simulation.requests
    later = np.maximum(requests["output"] - 1, 1)
    in_time = (requests["finish_s"] - requests["first_s"]) / later <= objective.tpot_s
    first = requests["first_s"] - requests["arrival_s"]
    limit = np.inf if objective.ttft_s is None else objective.ttft_s
    return np.asarray(in_time, np.bool_), np.asarray(first <= limit, np.bool_)


def gpus_held(simulation: Simulation, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """[edges] GPU-seconds from 0 to each edge."""
    time = np.array([t for t, _ in simulation.gpu_changes])
    held = np.cumsum([delta for _, delta in simulation.gpu_changes])
    seconds = np.concatenate(([0.0], np.cumsum(held[:-1] * np.diff(time))))
    return np.asarray(np.interp(edges, time, seconds), np.float64)


def _most_gpus(simulation: Simulation) -> int:
    """Changes of one moment count together."""
    held, most = 0, 0
    changes = simulation.gpu_changes
    for i, (time, delta) in enumerate(changes):
        held += delta
        if i + 1 == len(changes) or changes[i + 1][0] > time:
            most = max(most, held)
    return most


def _intervals(simulation: Simulation, good: NDArray[np.bool_]) -> tuple[IntervalReport, ...]:
    length, rows = simulation.timing.interval_s, simulation.interval
    requests = simulation.requests
    which = np.minimum((requests["arrival_s"] / length).astype(np.int64), len(rows) - 1)
    arrived = np.bincount(which, minlength=len(rows))
    attained = np.bincount(which, weights=good, minlength=len(rows))
    edges = np.append(np.arange(len(rows)) * length, simulation.end_s)
    edges = np.minimum(edges, max(simulation.end_s, 1e-9))
    gpu_s = np.diff(gpus_held(simulation, edges))
    result = []
    for i, row in enumerate(rows):
        span = float(edges[i + 1] - edges[i])
        if span <= 0:
            continue
        concurrency, busy = float(row[state.CONCURRENCY_S]), float(row[state.BUSY_S])
        result.append(
            IntervalReport(
                start_s=float(edges[i]),
                arrived=int(arrived[i]),
                request_rate=float(arrived[i]) / span,
                output_throughput=float(row[state.OUTPUT]) / span,
                mean_step_ms=1e3 * busy / float(row[state.STEPS]) if row[state.STEPS] else None,
                attained=float(attained[i] / arrived[i]) if arrived[i] else None,
                gpus=float(gpu_s[i]) / span,
                batch=concurrency / busy if busy else 0.0,
                busy=min(busy / span, 1.0),
            )
        )
    return tuple(result)
