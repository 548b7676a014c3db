"""Predicted against measured time per output token of the engine on this machine.

    python -m benchmarks.fidelity --json benchmarks/results/fidelity.json

Claim: over shapes and batches that the profile was not calibrated with, the oracle's error is at
most 10 % (median) and 20 % (p90). Of each run the predictor gets shape, transport, batch, mean
context and the mean number of activated experts on the busiest instance, which a routing trace
would give. Measured is the mean step in which all requests decode; each cell is the median of the
--rounds of --starts services, because a service keeps the luck of its start (where its processes
and huge pages are).

The tables of operations are measured first, as `janus profile` does. The batches that calibrate and
those that are predicted then take turns in the same services, so that a machine that is faster in
one minute than in another is so for both. --profile compares with a file that `janus profile` wrote
instead.

Memory bandwidth of a shared machine drifts by factors within minutes. So a reference, the sum of
an array that no cache holds, is timed around the profile and before every run, and errors are given
twice: as measured, and with each run divided by how much longer the reference took than it did
around the profile (`normalised`). The second is no claim about a quiet machine: it only says
how much of the error goes with the drift.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from functools import cache
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import msgspec
import numpy as np
from benchmarks.support.program import Result, flag, main
from numpy.typing import NDArray

from janus_moe.cluster.service import Service
from janus_moe.config import EngineConfig
from janus_moe.planner.latency import Oracle, Profile, read_profile
from janus_moe.planner.latency.profile import write_profile
from janus_moe.profiling import plan_profile
from janus_moe.profiling.live import Decoded, decode, running
from janus_moe.profiling.plan import LiveRun, ProfilePlan
from janus_moe.profiling.run import calibrated, run_tables

PROMPT_TOKENS, DECODE_TOKENS = 48, 32
MAX_BATCH = 32
Key = tuple[str, int, int]
Shape = tuple[str, int, int, tuple[int, ...]]
CELLS: tuple[Shape, ...] = (
    ("loopback", 1, 1, (1, 6, 24)),
    ("shm", 1, 1, (1, 6, 24)),
    ("shm", 1, 2, (1, 6, 24)),
    ("shm", 2, 1, (2, 12, 40)),
    ("shm", 2, 2, (6, 12, 48)),
    ("shm", 1, 3, (1, 6, 24)),
    ("shm", 2, 3, (6, 24)),
)
"""(transport, attention, expert, batches). Profiles are calibrated with other batches: 2, 4, 16 and
32 of 1A1E and 1A2E, 2, 8, 32 and 64 of 2A2E."""


@cache
def reference_array() -> NDArray[np.float32]:
    return np.ones(64 * 2**20, np.float32)


class Run(NamedTuple):
    """A batch that was decoded once.

    done: what it took and activated.
    slower: time of the reference before it over that around the profile.
    """

    done: Decoded
    slower: float


def measure(options: argparse.Namespace) -> Result:
    config = EngineConfig(model=options.model, tokenizer=options.tokenizer)
    plan = plan_profile(config, max_batch=MAX_BATCH)
    references = [reference_s()]
    profile = (
        read_profile(options.profile) if options.profile else asyncio.run(run_tables(plan, say))
    )
    references.append(reference_s())
    around_s = sum(references) / 2
    lives = services(plan, config)
    runs = asyncio.run(serve(lives, profile, options.rounds, options.starts, around_s))
    if not options.profile:
        calibration = {
            live: {b: [run.done for run in runs[key(live.config)][b]] for b in live.batches}
            for live in plan.live
        }
        profile = calibrated(profile, calibration)
    if options.save_profile:
        write_profile(options.save_profile, profile)
    rows = [row(profile, cell, runs[cell[:3]][batch], batch) for cell in CELLS for batch in cell[3]]
    errors = {name: summary([row[name] for row in rows]) for name in ("error", "normalised")}
    print(errors)
    return {"reference_s": references, "errors": errors, "rows": rows}


def summary(errors: list[float]) -> dict[str, float]:
    sizes = [abs(error) for error in errors]
    return {"median": median(sizes), "p90": quantiles(sizes, n=10)[-1], "worst": max(sizes)}


def reference_s() -> float:
    """Seconds to read 256 MB once, the median of nine."""
    array, times = reference_array(), []
    for _ in range(9):
        began = time.perf_counter()
        array.sum()
        times.append(time.perf_counter() - began)
    return median(times)


def say(text: str) -> None:
    print(text, flush=True)


def key(config: EngineConfig) -> Key:
    return config.transport, config.attention_instances, config.expert_instances


def services(plan: ProfilePlan, config: EngineConfig) -> list[LiveRun]:
    """Every shape with the batches that calibrate it, if any, and those that are predicted."""
    calibrating = {key(live.config): live.batches for live in plan.live}
    lives = []
    for transport, attention, expert, batches in CELLS:
        shaped = msgspec.structs.replace(
            config, transport=transport, attention_instances=attention, expert_instances=expert
        )
        every = {*batches, *calibrating.get(key(shaped), ())}
        lives.append(LiveRun(config=shaped, batches=tuple(sorted(every))))
    return lives


async def serve(
    lives: list[LiveRun], profile: Profile, rounds: int, starts: int, around_s: float
) -> dict[Key, dict[int, list[Run]]]:
    """Runs every service and returns batch -> runs for each.

    starts: of every service.
    rounds: of each start.
    around_s: seconds of the reference when the machine was profiled.
    """
    runs: dict[Key, dict[int, list[Run]]] = {
        key(live.config): {batch: [] for batch in live.batches} for live in lives
    }
    for _ in range(starts):
        for live in lives:
            own = runs[key(live.config)]
            async with running(live.config) as service:
                await measure_service(service, profile.model.vocab_size, rounds, around_s, own)
            say(f"{live.config.shape} over {live.config.transport} done")
    return runs


async def measure_service(
    service: Service, vocab_size: int, rounds: int, around_s: float, runs: dict[int, list[Run]]
) -> None:
    """Adds to `runs`; batches take turns."""
    generator = random.Random(0)
    for turn in range(rounds + 1):
        for batch, done in runs.items():
            prompts = [
                [generator.randrange(vocab_size) for _ in range(PROMPT_TOKENS)]
                for _ in range(batch)
            ]
            slower = reference_s() / around_s
            decoded = await decode(service, prompts, DECODE_TOKENS)
            if turn:  # the first one warms up
                done.append(Run(decoded, slower))


def row(profile: Profile, cell: Shape, runs: list[Run], batch: int) -> dict[str, Any]:
    """Predicted and measured milliseconds."""
    transport, attention, expert, _ = cell
    oracle = Oracle.from_profile(profile, attention, expert, transport)
    activated = median(run.done.activated for run in runs)
    context = runs[0].done.context
    load = oracle.pools_load(batch, context, attention, expert, activated, plan="1pc")
    predicted = float(oracle.step_s(load))
    measured = median(run.done.seconds for run in runs)
    steady = median(run.done.seconds / run.slower for run in runs)
    return {
        "cell": f"{attention}A{expert}E {transport}",
        "B": batch,
        "a_max": activated,
        "measured ms": 1e3 * measured,
        "fastest ms": 1e3 * min(run.done.seconds for run in runs),
        "reference": median(run.slower for run in runs),
        "predicted ms": 1e3 * predicted,
        "error": predicted / measured - 1,
        "normalised": predicted / steady - 1,
    }


if __name__ == "__main__":
    main(
        __doc__,
        measure,
        flag("--model", default="bundled"),
        flag("--tokenizer"),
        flag("--profile", type=Path, help="of this machine and model"),
        flag("--save-profile", type=Path),
        flag("--rounds", type=int, default=5, help="of each start"),
        flag("--starts", type=int, default=2, help="of each service"),
    )
