"""Steps in two micro-batches that take turns (ping-pong), beside whole ones, on one host.

    python -m benchmarks.micro_batches [--json FILE.json]

Services of the bundled model over shared memory with one thread per instance, so that each pool has
a core of its own, one with `--micro-batch-threshold 2` and one without, take turns, round by round.
`over_whole`: median over rounds of time per decode step over that of whole steps in its round;
`again`: the same of a second service with whole steps, which is what noise does. `activated`: of an
exchange, mean over layers; two halves read nearly all of them twice. No claim: it says where the
halves win.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.auto_transport import make_prompts
from benchmarks.common import machine_facts, print_table, write_json

from janus_moe.cluster.service import Service
from janus_moe.config import EngineConfig
from janus_moe.profiling import live
from janus_moe.profiling.live import Decoded

SHAPES = ((1, 1), (1, 2))
BATCHES = (2, 8, 32, 64)
DECODE_STEPS = 16
VARIANTS = {"whole": 0, "whole again": 0, "halves": 2}


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


async def measure(shape: tuple[int, int], rounds: int) -> list[dict[str, Any]]:
    found: dict[tuple[int, str], list[Decoded]] = {}
    async with contextlib.AsyncExitStack() as stack:
        services: list[tuple[str, Service]] = []
        for name, threshold in VARIANTS.items():
            running = live.running(settings(shape, threshold))
            services.append((name, await stack.enter_async_context(running)))
        for turn in range(rounds + 1):
            first = turn % len(services)
            for batch in BATCHES:
                for name, service in services[first:] + services[:first]:
                    prompts = make_prompts(batch, turn, service.engine.spec.vocab_size)
                    decoded = await live.decode(service, prompts, DECODE_STEPS)
                    if turn:  # the first round warms up
                        found.setdefault((batch, name), []).append(decoded)
    return [row(shape, batch, found) for batch in BATCHES]


def row(
    shape: tuple[int, int], batch: int, found: dict[tuple[int, str], list[Decoded]]
) -> dict[str, Any]:
    whole, again, halves = (found[batch, name] for name in VARIANTS)

    def over(these: list[Decoded]) -> float:
        return median(a.seconds / b.seconds for a, b in zip(these, whole, strict=True))

    return {
        "shape": f"{shape[0]}A{shape[1]}E",
        "batch": batch,
        "whole_ms": 1e3 * median(one.seconds for one in whole),
        "halves_ms": 1e3 * median(one.seconds for one in halves),
        "over_whole": over(halves),
        "again": over(again),
        "activated_whole": median(one.activated for one in whole),
        "activated_halves": median(one.activated for one in halves),
        "rounds": len(whole),
    }


async def measure_all(rounds: int) -> list[dict[str, Any]]:
    return [one for shape in SHAPES for one in await measure(shape, rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="JSON with machine, commit and all figures")
    options = parser.parse_args()
    rows = asyncio.run(measure_all(options.rounds))
    print_table(rows)
    if options.json:
        facts = {"benchmark": "micro_batches", "machine": machine_facts()}
        write_json(options.json, {**facts, "rows": rows})


if __name__ == "__main__":
    main()
