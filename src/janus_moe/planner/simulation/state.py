"""What the compiled simulator of steps remembers: requests, instances, sums over time.

Arrays of records, so that compiled code can read and write them between two pauses. Knows no rules.
Requests and instances are numbers; -1 is none.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from janus_moe.planner.simulation.workload import RequestTrace

DONE, PAUSED = 0, 1  # what `steps.run` returns
ABSENT, ACTIVE, DRAINING = 0, 1, 2  # status of an instance
REJECTED = -2  # instead of an instance: the request can never fit

# Columns of `PoolState.interval` and of `PoolState.log`.
BUSY_S, STEPS, OUTPUT, CONCURRENCY_S, PREFILL = range(5)
START, SECONDS, TOKENS, RUNNING, WAITING = range(5)

REQUEST = np.dtype(
    [
        ("arrival_s", "f8"),
        ("first_s", "f8"),  # end of the step that gave the first token; NaN until then
        ("finish_s", "f8"),
        ("prompt", "i8"),
        ("output", "i8"),
        ("produced", "i8"),  # tokens as of the last start or restart
        ("last_step", "i8"),  # while it decodes: the step that gives its last token
        ("instance", "i8"),
        ("phase", "i8"),  # while it decodes: KV positions minus step number, modulo block size
        ("next", "i8"),  # in the running or waiting list of its instance
        ("previous", "i8"),
        ("due_next", "i8"),  # among those with the same last step, or starting in this one
        ("due_previous", "i8"),
    ]
)

INSTANCE = np.dtype(
    [
        ("status", "i8"),
        ("capacity", "i8"),  # KV blocks
        ("used", "i8"),
        ("decoding", "i8"),  # requests
        ("kv", "i8"),  # positions that the decoding ones hold
        ("partial", "i8"),  # the request whose prompt is partly computed; always the last one
        ("partial_done", "i8"),
        ("unstarted", "i8"),  # prompt tokens of requests without a first token
        ("running", "i8"),
        ("waiting", "i8"),
        ("run_first", "i8"),
        ("run_last", "i8"),
        ("wait_first", "i8"),
        ("wait_last", "i8"),
        ("starting", "i8"),  # first of those whose present tokens this step completes
        ("planned_tokens", "f8"),  # of the step under way
        ("planned_kv", "f8"),
        ("planned_samples", "f8"),
        ("drained_s", "f8"),  # when its last request ended after it was told to drain
    ]
)

CLOCK = np.dtype(
    [
        ("now_s", "f8"),
        ("step", "i8"),
        ("next_arrival", "i8"),
        ("num_preemptions", "i8"),
        ("num_steps", "i8"),  # with tokens
        ("num_logged", "i8"),
    ]
)

Records = NDArray[Any]


class BatchLimits(NamedTuple):
    """max_num_seqs <= max_num_batched_tokens, both per attention instance and step."""

    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int


class PoolState(NamedTuple):
    """What compiled steps read and write.

    instances: [instances] INSTANCE.
    crossing: [instances, block_size] int64 decoding requests by phase.
    due: [ring] int64 first request that ends in a step, by step modulo ring.
    clock: [1] CLOCK.
    interval: [intervals, 5] sums over steps that begin in it.
    log: [steps, 5] the first steps.
    """

    instances: Records
    crossing: NDArray[np.int64]
    due: NDArray[np.int64]
    clock: Records
    interval: NDArray[np.float64]
    interval_s: float
    log: NDArray[np.float64]


def new_requests(workload: RequestTrace) -> Records:
    """[requests] REQUEST; nothing has happened to any of them."""
    requests = np.zeros(workload.num_requests, REQUEST)
    requests["arrival_s"] = workload.arrival_s
    requests["prompt"], requests["output"] = workload.prompt_tokens, workload.output_tokens
    requests["first_s"] = requests["finish_s"] = np.nan
    for field in ("instance", "next", "previous", "due_next", "due_previous"):
        requests[field] = -1
    return requests


def new_pool(
    workload: RequestTrace, max_instances: int, block_size: int, interval_s: float, log_steps: int
) -> PoolState:
    """No instance is there yet. The last interval takes all that comes after the others."""
    instances = np.zeros(max_instances, INSTANCE)
    for field in ("partial", "run_first", "run_last", "wait_first", "wait_last", "starting"):
        instances[field] = -1
    instances["drained_s"] = np.nan
    return PoolState(
        instances=instances,
        crossing=np.zeros((max_instances, block_size), np.int64),
        due=np.full(int(workload.output_tokens.max()) + 2, -1, np.int64),
        clock=np.zeros(1, CLOCK),
        interval=np.zeros((int(workload.duration_s / interval_s) + 2, PREFILL + 1)),
        interval_s=float(interval_s),
        log=np.zeros((log_steps, WAITING + 1)),
    )
