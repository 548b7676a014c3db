"""The activation scheduler on a GPU: device time per layer call, beside the paper's.

A CUDA graph holds one call per batch, ids in and slots out. Its replay is timed with events and
divided by the calls, so the host's launch costs are not in it. Every answer is compared with the
CPU's first. The paper (arXiv 2512.13525) reports less than 20 us at small batches and less than
90 us at 4,096 tokens.

schedule   the kernel alone: set of activated experts, schedule, slots
instance   what an expert instance runs per layer: that, and the numbers of its reply's note
launching  the host's time to start the latter without a graph, as the service does today

    python -m benchmarks.gpu_scheduling [--json FILE]            (needs a CUDA device and Triton)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import torch
from benchmarks.support.program import Result, flag, main

from janus_moe.experts.scheduling import DeviceDigest, DeviceScheduler
from janus_moe.kernels.activation_schedule import (
    ActivationScheduleKernel,
    DevicePolicy,
    PolicyActivationSchedule,
    ReplicaTables,
    ScheduleTensors,
)
from janus_moe.policy.placement import initial_placement
from janus_moe.policy.synthetic import SyntheticRouter
from janus_moe.transport import ReplyMetadata, Ticket, read_metadata

SHAPES = ((128, 8, 20), (256, 16, 20), (512, 64, 10))  # experts, instances, slots
BATCH_SIZES = (1, 4, 16, 64, 128, 256, 1024, 4096)
TOP_K = 8
NUM_BATCHES = 16
PAPER_US = {False: 20.0, True: 90.0}  # by: whether the batch is the largest
AIM_US = {False: 10.0, True: 20.0}
INSTANCE = 0


def check(answers: Sequence[ScheduleTensors], expected: Sequence[ScheduleTensors]) -> None:
    """All ids, and the rest of the last call, to which it belongs."""
    for answer, want in zip(answers, expected, strict=True):
        last = want is expected[-1]
        for name in want._fields if last else ("slot_ids", "replica_ids"):
            if not torch.equal(getattr(answer, name).cpu(), getattr(want, name)):
                raise SystemExit(f"{name} differ from the CPU's; no figure of this is worth a look")


def check_notes(replies: Sequence[ReplyMetadata], expected: Sequence[ScheduleTensors]) -> None:
    tickets = [Ticket(0, 0, call) for call in range(len(replies))]
    for [metadata], want in zip(
        read_metadata(tickets, [(metadata,) for metadata in replies]), expected, strict=True
    ):
        if metadata.activated != int(want.activated[INSTANCE]):
            raise SystemExit("notes differ from the CPU's; no figure of this is worth a look")


def captured(run: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of what `run` launches, and what it returned; compiled and allocated before."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    graph.replay()
    return graph, result


def replay_us(graph: torch.cuda.CUDAGraph, replays: int) -> list[float]:
    """Device time of each replay."""
    make_event: Any = torch.cuda.Event  # untyped
    events = [make_event(enable_timing=True) for _ in range(replays + 1)]
    for _ in range(3):
        graph.replay()
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    return [one.elapsed_time(other) * 1e3 for one, other in pairwise(events)]


def launching_us(run: Callable[[], Any], calls: int, repeats: int) -> float:
    """The host's time for one call, none of which waits; the fastest of some runs."""
    taken = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return 1e6 * min(taken) / calls


def measure(
    tables: ReplicaTables, policy: DevicePolicy, batches: Sequence[torch.Tensor], replays: int
) -> dict[str, float]:
    kernel = ActivationScheduleKernel(tables, policy, "cuda")
    instance = DeviceScheduler(kernel, INSTANCE, 0, DeviceDigest("cuda"))
    instance.warm_up()
    reference = PolicyActivationSchedule(tables, policy)
    expected = [_copied(reference.schedule(ids, INSTANCE)) for ids in batches]
    on_device = [ids.cuda() for ids in batches]

    def schedule_all() -> list[Any]:
        return [instance.schedule(ids) for ids in on_device]

    graph, answers = captured(lambda: [kernel.schedule(ids, INSTANCE) for ids in on_device])
    check(answers, expected)
    with_notes, scheduled = captured(schedule_all)
    check_notes([one.metadata for one in scheduled], expected)
    taken = np.array(replay_us(graph, replays)) / len(batches)
    whole = np.array(replay_us(with_notes, replays)) / len(batches)
    return {
        "schedule min us": float(taken.min()),
        "schedule median us": float(np.median(taken)),
        "schedule p99 us": float(np.quantile(taken, 0.99)),
        "instance median us": float(np.median(whole)),
        "launching us": launching_us(schedule_all, len(batches), 10),
    }


def _copied(answer: ScheduleTensors) -> ScheduleTensors:
    """Not overwritten by the next schedule."""
    return ScheduleTensors(*(tensor.clone() for tensor in answer))


def rows_of(experts: int, instances: int, slots: int, replays: int) -> list[dict[str, Any]]:
    placement = initial_placement(1, experts, instances, instances * slots - experts)
    tables = ReplicaTables.from_slots(placement.slots[0], experts)
    router = SyntheticRouter("topics", experts, TOP_K)
    rng = np.random.default_rng(0)
    rows = []
    for size in BATCH_SIZES:
        batches = [torch.from_numpy(router.batch(size, rng)) for _ in range(NUM_BATCHES)]
        for policy in get_args(DevicePolicy):
            rows.append(
                {
                    "experts": experts,
                    "instances": instances,
                    "slots": slots,
                    "batch": size,
                    "policy": policy,
                    **measure(tables, policy, batches, replays),
                    "aim us": AIM_US[size == max(BATCH_SIZES)],
                    "paper us": PAPER_US[size == max(BATCH_SIZES)],
                }
            )
    return rows


def measure_all(options: argparse.Namespace) -> Result:
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu_scheduling needs a CUDA device; torch finds none here")
    rows = [row for shape in SHAPES for row in rows_of(*shape, options.replays)]
    gpu = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return {**gpu, "routing": "synthetic topics", "rows": rows}


if __name__ == "__main__":
    main(
        __doc__,
        measure_all,
        flag("--replays", type=int, default=200, help="replays of each graph"),
    )
