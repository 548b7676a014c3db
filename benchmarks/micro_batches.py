"""Steps in two micro-batches that take turns (ping-pong), beside whole ones, on one host.

    python -m benchmarks.micro_batches [--json FILE.json] [--rounds 20]

Services of the bundled model over shared memory with one thread per instance, so that each pool has
a core of its own: with `--micro-batch-threshold 2`, without, and without again for what noise does.
Ratios are of decode steps, over whole ones of the same round. `activated` counts experts of the
busiest instance per exchange; two halves read nearly all of them twice. The program claims nothing:
it says where the halves win.
"""

from __future__ import annotations

import argparse
import asyncio
from statistics import median
from typing import Any

from benchmarks.support.program import Result, flag, main
from benchmarks.support.ratios import paired_ratio
from benchmarks.support.turns import Turns, take_turns

from janus_moe.config import EngineConfig

SHAPES = ((1, 1), (1, 2))
BATCHES = (2, 8, 32, 64)
DECODE_STEPS = 16
THRESHOLDS = {"whole": 0, "whole again": 0, "halves": 2}


def measure(options: argparse.Namespace) -> Result:
    rows: list[dict[str, Any]] = []
    for shape in SHAPES:
        configs = {name: settings(shape, threshold) for name, threshold in THRESHOLDS.items()}
        turns = asyncio.run(take_turns(configs, BATCHES, options.rounds, DECODE_STEPS))
        rows += [row(shape, batch, turns) for batch in BATCHES]
    return {"rows": rows}


def settings(shape: tuple[int, int], threshold: int) -> EngineConfig:
    return EngineConfig(
        attention_instances=shape[0],
        expert_instances=shape[1],
        transport="shm",
        threads=1,
        micro_batch_threshold=threshold,
        max_model_len=256,
        prefix_caching="off",
    )


def row(shape: tuple[int, int], batch: int, turns: Turns) -> dict[str, Any]:
    seconds = {name: [turn.decoded.seconds for turn in turns[batch, name]] for name in THRESHOLDS}
    activated = {
        name: median(turn.decoded.activated for turn in turns[batch, name])
        for name in ("whole", "halves")
    }
    return {
        "shape": f"{shape[0]}A{shape[1]}E",
        "batch": batch,
        "whole ms": 1e3 * median(seconds["whole"]),
        "halves ms": 1e3 * median(seconds["halves"]),
        **paired_ratio(seconds["halves"], seconds["whole"]).columns("over whole"),
        **paired_ratio(seconds["whole again"], seconds["whole"]).columns("again"),
        "activated whole": activated["whole"],
        "activated halves": activated["halves"],
    }


if __name__ == "__main__":
    main(__doc__, measure, flag("--rounds", type=int, default=20))
