"""A simulation as a Chrome trace: open it in Perfetto or chrome://tracing.

Format: the JSON object form of the Trace Event Format. Steps are complete events (X), requests
asynchronous ones (b, e) on the track of their attention instance, GPUs and queue counters (C).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from janus_moe.errors import ConfigError
from janus_moe.planner.simulation import state
from janus_moe.planner.simulation.simulate import Simulation

STEPS, REQUESTS = 1, 2  # process ids
MAX_REQUESTS = 5_000

Event = dict[str, Any]


def write_chrome_trace(simulation: Simulation, path: Path) -> None:
    """What `simulation.log` has of steps, with the requests of that time."""
    content = {"traceEvents": list(events(simulation)), "displayTimeUnit": "ms"}
    try:
        path.write_text(json.dumps(content) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def events(simulation: Simulation) -> Iterator[Event]:
    """In the order of tracks, not of time."""
    log = simulation.log
    end_s = float(log[-1, state.START] + log[-1, state.SECONDS]) if len(log) else 0.0
    yield _name("process_name", STEPS, 0, f"{simulation.policy}: steps, GPUs, decisions")
    yield _name("process_name", REQUESTS, 0, "requests")
    yield from _steps(simulation)
    yield from _gpus(simulation, end_s)
    yield from _requests(simulation, end_s)


def _name(kind: str, pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def _steps(simulation: Simulation) -> Iterator[Event]:
    yield _name("thread_name", STEPS, 1, "steps")
    for start, seconds, tokens, running, waiting in simulation.log.tolist():
        args = {"tokens": int(tokens), "running": int(running), "waiting": int(waiting)}
        at = {"pid": STEPS, "ts": _us(start)}
        yield {"ph": "X", "name": "step", "tid": 1, "dur": _us(seconds), "args": args, **at}
        yield {"ph": "C", "name": "requests", "args": {k: args[k] for k in list(args)[1:]}, **at}


def _gpus(simulation: Simulation, end_s: float) -> Iterator[Event]:
    yield _name("thread_name", STEPS, 2, "changes of the deployment")
    held = 0
    for time, delta in simulation.gpu_changes:
        held += delta
        if time <= end_s:
            yield {"ph": "C", "name": "GPUs", "pid": STEPS, "ts": _us(time), "args": {"held": held}}
    for one in simulation.decisions:
        if one.decided_s <= end_s:
            yield {
                "ph": "X",
                "name": f"to {one.deployment}",
                "pid": STEPS,
                "tid": 2,
                "ts": _us(one.decided_s),
                "dur": _us(one.serving_s - one.decided_s),
                "args": {"num_gpus": one.num_gpus, **one.demand._asdict()},
            }


def _requests(simulation: Simulation, end_s: float) -> Iterator[Event]:
    requests = simulation.requests
    shown = np.flatnonzero(requests["finish_s"] <= end_s)[:MAX_REQUESTS]
    for instance in np.unique(requests["instance"][shown]).tolist():
        yield _name("thread_name", REQUESTS, instance, f"attention {instance}")
    for number in shown.tolist():
        one = requests[number]
        at = {"pid": REQUESTS, "tid": int(one["instance"]), "id": number, "cat": "request"}
        args = {"prompt": int(one["prompt"]), "output": int(one["output"])}
        spans = (
            ("until first token", one["arrival_s"], one["first_s"]),
            ("decode", one["first_s"], one["finish_s"]),
        )
        for name, start, end in spans:
            yield {"ph": "b", "name": name, "ts": _us(start), "args": args, **at}
            yield {"ph": "e", "name": name, "ts": _us(end), **at}


def _us(seconds: float) -> float:
    return round(float(seconds) * 1e6, 3)
