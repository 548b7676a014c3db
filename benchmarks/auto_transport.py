"""On one host, what `auto` chooses costs no more than shared memory: claimed within 2 %.

    python -m benchmarks.auto_transport [--json FILE.json]

Services of the bundled model with `--transport auto --exchange auto`, with `--transport shm`, and
with `--transport shm` once more for what noise does, are all up and take turns, round by round. The
ratios are medians over rounds of time per decode step over that of the first `shm` in its round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks.common import machine_facts, print_table, write_json

from janus_moe.cluster.service import Service
from janus_moe.config import EngineConfig
from janus_moe.profiling import live

SHAPES = ((1, 2), (2, 2))
BATCHES = (4, 32)
PROMPT_TOKENS, DECODE_STEPS = 8, 12
VARIANTS = {"shm": "shm", "shm again": "shm", "auto": "auto"}


async def measure(shape: tuple[int, int], rounds: int) -> list[dict[str, Any]]:
    times: dict[tuple[int, str], list[float]] = {}
    async with contextlib.AsyncExitStack() as stack:
        services: dict[str, Service] = {}
        for name, transport in VARIANTS.items():
            running = live.running(settings(shape, transport))
            services[name] = await stack.enter_async_context(running)
        chosen = {name: service.plan.config.transport for name, service in services.items()}
        for turn in range(rounds + 1):
            order = list(services.items())
            order = order[turn % len(order) :] + order[: turn % len(order)]
            for batch in BATCHES:
                for name, service in order:
                    prompts = make_prompts(batch, turn, service.engine.spec.vocab_size)
                    decoded = await live.decode(service, prompts, DECODE_STEPS)
                    if turn:  # the first round warms up
                        times.setdefault((batch, name), []).append(decoded.seconds)
    return [
        {
            "shape": f"{shape[0]}A{shape[1]}E",
            "batch": batch,
            "variant": name,
            "transport": chosen[name],
            "step_ms": 1e3 * median(found),
            "best_ms": 1e3 * min(found),
            "over_shm": median(a / b for a, b in zip(found, times[batch, "shm"], strict=True)),
            "best_over_shm": min(found) / min(times[batch, "shm"]),
            "rounds": rounds,
        }
        for (batch, name), found in times.items()
    ]


def settings(shape: tuple[int, int], transport: str) -> EngineConfig:
    return EngineConfig(
        attention_instances=shape[0],
        expert_instances=shape[1],
        transport=transport,  # type: ignore[arg-type]
        exchange="auto",
        max_model_len=256,
        prefix_caching="off",
    )


def make_prompts(batch: int, turn: int, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1000 * turn + batch)
    return torch.randint(0, vocabulary, (batch, PROMPT_TOKENS), generator=generator).tolist()


async def measure_all(shapes: Sequence[tuple[int, int]], rounds: int) -> list[dict[str, Any]]:
    return [row for shape in shapes for row in await measure(shape, rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=36)
    parser.add_argument("--json", type=Path, help="JSON with machine, commit and all figures")
    options = parser.parse_args()
    rows = asyncio.run(measure_all(SHAPES, options.rounds))
    print_table(rows)
    if options.json:
        facts = {"benchmark": "auto_transport", "machine": machine_facts()}
        write_json(options.json, {**facts, "rows": rows})


if __name__ == "__main__":
    main()
