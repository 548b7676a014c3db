"""Predicted against measured time per output token of the engine on this machine.

    python -m benchmarks.fidelity --json benchmarks/results/fidelity.json

Claim: over shapes and batches that the profile was not calibrated with, the oracle's error is at
most 10 % (median) and 20 % (p90). The machine is profiled first (`janus profile`), unless --profile
names a file that it wrote. Of each run the predictor gets shape, transport, batch, mean context and
the mean number of activated experts on the busiest instance, which a routing trace would give.
Measured is the mean step in which all requests decode; each cell is the median of --rounds.

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
from benchmarks.common import machine_facts, print_table, write_json
from numpy.typing import NDArray

from janus_moe.config import EngineConfig
from janus_moe.control.profiling import plan_profile, run_profile
from janus_moe.control.profiling.live import Decoded, decode, running
from janus_moe.perf import Oracle, Profile, read_profile
from janus_moe.perf.profile import write_profile

PROMPT_TOKENS, DECODE_TOKENS = 48, 32
MAX_BATCH = 32
CELLS: tuple[tuple[str, int, int, tuple[int, ...]], ...] = (
    ("loopback", 1, 1, (1, 6, 24)),
    ("shm", 1, 1, (1, 6, 24)),
    ("shm", 1, 2, (1, 6, 24)),
    ("shm", 2, 1, (2, 12, 40)),
    ("shm", 2, 2, (6, 12, 48)),
    ("shm", 1, 3, (1, 6, 24)),
    ("shm", 2, 3, (6, 24)),
)
"""(transport, attention, expert, batches). Profiles are calibrated with batches 2, 16 and 32 of
1A1E, 1A2E and 2A2E."""


@cache
def reference_array() -> NDArray[np.float32]:
    return np.ones(64 * 2**20, np.float32)


class Run(NamedTuple):
    """slower: how much longer the reference took before it than around the profile."""

    done: Decoded
    slower: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--tokenizer")
    parser.add_argument("--profile", type=Path, help="of this machine and model")
    parser.add_argument("--save-profile", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = EngineConfig(model=options.model, tokenizer=options.tokenizer)
    references = [reference_s()]
    if options.profile:
        profile = read_profile(options.profile)
    else:
        plan = plan_profile(config, max_batch=MAX_BATCH)
        profile = asyncio.run(run_profile(plan, lambda text: print(text, flush=True)))
    if options.save_profile:
        write_profile(options.save_profile, profile)
    references.append(reference_s())
    rows = asyncio.run(measure(profile, config, options.rounds, sum(references) / 2))
    print_table(rows)
    summaries = {name: summary([row[name] for row in rows]) for name in ("error", "normalised")}
    print(summaries, f"reference around the profile: {references}")
    if options.json:
        content = {"machine": machine_facts(), "reference_s": references}
        write_json(options.json, {**content, "errors": summaries, "rows": rows})


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


async def measure(
    profile: Profile, config: EngineConfig, rounds: int, around_s: float
) -> list[dict[str, Any]]:
    """One row per cell; services one after another, batches in turns. around_s: the reference when
    the machine was profiled."""
    rows = []
    for transport, attention, expert, batches in CELLS:
        changed = {
            "transport": transport,
            "attention_instances": attention,
            "expert_instances": expert,
        }
        runs: dict[int, list[Run]] = {batch: [] for batch in batches}
        generator = random.Random(attention * 10 + expert)
        async with running(msgspec.structs.replace(config, **changed)) as service:
            for turn in range(rounds + 1):
                for batch in batches:
                    prompts = [
                        [
                            generator.randrange(profile.model.vocab_size)
                            for _ in range(PROMPT_TOKENS)
                        ]
                        for _ in range(batch)
                    ]
                    slower = reference_s() / around_s
                    done = await decode(service, prompts, DECODE_TOKENS)
                    if turn:  # the first one warms up
                        runs[batch].append(Run(done, slower))
        oracle = Oracle.from_profile(profile, attention, expert, transport)
        rows += [row(oracle, f"{attention}A{expert}E {transport}", b, runs[b]) for b in batches]
        print(f"{attention}A{expert}E over {transport} done", flush=True)
    return rows


def row(oracle: Oracle, name: str, batch: int, runs: list[Run]) -> dict[str, Any]:
    """Predicted and measured milliseconds of one cell."""
    shape = name.split()[0]
    attention, expert = (int(part) for part in shape.rstrip("E").split("A"))
    activated = median(run.done.activated for run in runs)
    context = runs[0].done.context
    load = oracle.pools_load(batch, context, attention, expert, activated, plan="1pc")
    predicted = float(oracle.step_s(load))
    measured = median(run.done.seconds for run in runs)
    steady = median(run.done.seconds / run.slower for run in runs)
    return {
        "cell": name,
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
    main()
