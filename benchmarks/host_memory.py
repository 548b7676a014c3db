"""On one host, one shared region is faster than messages between pairs of instances beside gloo.

    python -m benchmarks.host_memory [--json FILE.json] [--rounds 36]

Claim: a decode step takes more than 3 % longer with `--transport gloo`, whose instances of one host
read each other's memory, than with `--transport shm`; else one of the two could go.

Services of the bundled model with `shm`, with `shm` again for what the luck of a start does, and
with `gloo` are all up and take turns, round by round. Ratios are medians over the pairs of a round
with the first `shm`, with a 95 % bootstrap interval. `cpu us` is processor time per token of each
worker, in the order of their names, and a mean over all rounds.
"""

from __future__ import annotations

import argparse
import asyncio
from statistics import mean, median
from typing import Any

from benchmarks.support.program import Result, flag, main
from benchmarks.support.ratios import paired_ratio
from benchmarks.support.turns import Turn, Turns, take_turns

from janus_moe.config import EngineConfig

SHAPES = ((1, 2), (2, 2))
BATCHES = (4, 32)
DECODE_STEPS = 24
VARIANTS = {"shm": "shm", "shm again": "shm", "gloo": "gloo"}


def measure(options: argparse.Namespace) -> Result:
    rows: list[dict[str, Any]] = []
    for shape in SHAPES:
        configs = {name: settings(shape, transport) for name, transport in VARIANTS.items()}
        turns = asyncio.run(take_turns(configs, BATCHES, options.rounds, DECODE_STEPS))
        rows += [row(shape, batch, name, turns) for batch in BATCHES for name in VARIANTS]
    return {"rows": rows}


def settings(shape: tuple[int, int], transport: str) -> EngineConfig:
    return EngineConfig(
        attention_instances=shape[0],
        expert_instances=shape[1],
        transport=transport,  # type: ignore[arg-type]
        max_model_len=256,
        prefix_caching="off",
    )


def row(shape: tuple[int, int], batch: int, name: str, turns: Turns) -> dict[str, Any]:
    """One line of the table: a service at one batch size, over the first `shm`."""
    own, base = turns[batch, name], turns[batch, "shm"]
    cpu, ratio = cpu_us(own), paired_ratio(seconds(own), seconds(base))
    return {
        "shape": f"{shape[0]}A{shape[1]}E",
        "batch": batch,
        "service": name,
        "step ms": 1e3 * median(seconds(own)),
        **ratio.columns("over shm"),
        "cpu over shm": sum(cpu.values()) / sum(cpu_us(base).values()),
        "cpu us": " ".join(f"{value:.0f}" for value in cpu.values()),
        "cpu us of worker": cpu,
        "pairs": ratio.num_pairs,
    }


def seconds(turns: list[Turn]) -> list[float]:
    return [turn.decoded.seconds for turn in turns]


def cpu_us(turns: list[Turn]) -> dict[str, float]:
    """Worker -> microseconds of processor time per token, a mean: the kernel counts in ticks."""
    workers = sorted(turns[0].cpu_s_per_token)
    return {w: 1e6 * mean(turn.cpu_s_per_token[w] for turn in turns) for w in workers}


if __name__ == "__main__":
    main(__doc__, measure, flag("--rounds", type=int, default=36, help="pairs of turns"))
