"""A simulation as a Chrome trace: steps, requests, GPUs and changes of the deployment.

Requests are on the row of their attention instance, where they overlap; GPUs and the queue are
counters.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from janus_moe.planner.simulation import state
from janus_moe.planner.simulation.simulate import Simulation
from janus_moe.tracing.chrome_events import (
    TraceEvent,
    complete,
    counter,
    overlapping,
    process_name,
    thread_name,
    write_trace,
)

STEPS, REQUESTS = 1, 2  # groups of rows
MAX_REQUESTS = 5_000


def write_chrome_trace(simulation: Simulation, path: Path) -> None:
    """Writes what `simulation.log` has of steps, with the requests of that time."""
    write_trace(path, events(simulation))


def events(simulation: Simulation) -> Iterator[TraceEvent]:
    """All events, in the order of rows, not of time."""
    log = simulation.log
    end_s = float(log[-1, state.START] + log[-1, state.SECONDS]) if len(log) else 0.0
    yield process_name(STEPS, f"{simulation.policy}: steps, GPUs, decisions")
    yield process_name(REQUESTS, "requests")
    yield from _steps(simulation)
    yield from _gpus(simulation, end_s)
    yield from _requests(simulation, end_s)


def _steps(simulation: Simulation) -> Iterator[TraceEvent]:
    yield thread_name(STEPS, 1, "steps")
    for start, seconds, tokens, running, waiting in simulation.log.tolist():
        args = {"tokens": int(tokens), "running": int(running), "waiting": int(waiting)}
        yield complete("step", _us(start), _us(seconds), STEPS, 1, args)
        queue = {"running": int(running), "waiting": int(waiting)}
        yield counter("requests", _us(start), STEPS, queue)


def _gpus(simulation: Simulation, end_s: float) -> Iterator[TraceEvent]:
    yield thread_name(STEPS, 2, "changes of the deployment")
    held = 0
    for time, delta in simulation.gpu_changes:
        held += delta
        if time <= end_s:
            yield counter("GPUs", _us(time), STEPS, {"held": held})
    for one in simulation.decisions:
        if one.decided_s <= end_s:
            yield complete(
                f"to {one.deployment}",
                _us(one.decided_s),
                _us(one.serving_s - one.decided_s),
                STEPS,
                2,
                {"num_gpus": one.num_gpus, **one.demand._asdict()},
            )


def _requests(simulation: Simulation, end_s: float) -> Iterator[TraceEvent]:
    requests = simulation.requests
    shown = np.flatnonzero(requests["finish_s"] <= end_s)[:MAX_REQUESTS]
    for instance in np.unique(requests["instance"][shown]).tolist():
        yield thread_name(REQUESTS, instance, f"attention {instance}")
    for number in shown.tolist():
        one = requests[number]
        row = int(one["instance"])
        args = {"prompt": int(one["prompt"]), "output": int(one["output"])}
        spans = (
            ("until first token", one["arrival_s"], one["first_s"]),
            ("decode", one["first_s"], one["finish_s"]),
        )
        for name, start, end in spans:
            yield from overlapping(
                name, _us(start), _us(end), REQUESTS, row, args, "request", number
            )


def _us(seconds: float) -> float:
    return round(float(seconds) * 1e6, 3)
