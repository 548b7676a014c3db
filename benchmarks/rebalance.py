"""What moving experts costs those whose tokens are under way.

    python -m benchmarks.rebalance --json benchmarks/results/rebalance.json

Claim: on the bundled model, 1A2E over shared memory, exchanging the experts of both instances again
and again adds at most 5 % to the 99th percentile of the time between two tokens.

One service; turns with and without rebalancing alternate, so that what else the machine does hits
both, and which of a pair comes first changes. Ratios are of pairs of turns.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmarks.support.report import machine_facts, print_table, write_json

from janus_moe.cluster.service import Service
from janus_moe.config import EngineConfig
from janus_moe.messages import SamplingParams
from janus_moe.profiling.live import running

PROMPT_TOKENS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=600, help="per stream and turn")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two rebalances")
    parser.add_argument("--rounds", type=int, default=10, help="pairs of turns")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = asyncio.run(measure(arguments))
    print_table(result["rows"])
    print({key: value for key, value in result.items() if key != "rows"})
    if arguments.json:
        write_json(arguments.json, {"machine": machine_facts(), **result})


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    config = EngineConfig(
        model=arguments.model, expert_instances=2, transport="shm", threads=1, max_model_len=1024
    )
    async with running(config) as service:
        rows = []
        for number in range(arguments.rounds + 1):
            pair = {}
            for moving in (True, False) if number % 2 else (False, True):
                pair[moving] = await turn(service, arguments, moving)
            if number:  # the first round warms up
                rows.append(row(pair))
        return summary(rows)


async def turn(
    service: Service, arguments: argparse.Namespace, moving: bool
) -> tuple[np.ndarray[Any, Any], int]:
    """(seconds between tokens of all streams, epochs taken meanwhile)."""
    epoch = service.rebalancer.placement.epoch
    mover = asyncio.create_task(keep_moving(service, arguments.pause)) if moving else None
    gaps = await asyncio.gather(
        *(stream(service, arguments.tokens, index) for index in range(arguments.streams))
    )
    epochs = service.rebalancer.placement.epoch - epoch
    if mover is not None:
        mover.cancel()
        await asyncio.gather(mover, return_exceptions=True)
        while service.rebalancer.status.state != "idle":
            await asyncio.sleep(0.01)
    return np.concatenate(gaps), epochs


async def keep_moving(service: Service, pause_s: float) -> None:
    """Exchanges the experts of the two instances, again and again."""
    while True:
        if service.rebalancer.status.state == "idle":
            await asyncio.sleep(pause_s)
            assert service.rebalancer.status.error is None
            slots = [layer[::-1] for layer in service.rebalancer.placement.slots]
            await service.rebalancer.rebalance(slots)
        await asyncio.sleep(0.02)


async def stream(service: Service, num_tokens: int, index: int) -> np.ndarray[Any, Any]:
    """Seconds between the tokens of one request."""
    sampling = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
    prompt = [(37 * index + 11 * i) % service.plan.spec.vocab_size for i in range(PROMPT_TOKENS)]
    arrivals = []
    name = f"{time.monotonic_ns()}-{index}"
    async for chunk in service.engine.submit(name, prompt, sampling):
        arrivals += [time.perf_counter()] * len(chunk.token_ids)
    return np.diff(np.array(arrivals[2:]))


def row(pair: dict[bool, tuple[np.ndarray[Any, Any], int]]) -> dict[str, Any]:
    still, moving = pair[False][0], pair[True][0]
    return {
        "epochs": pair[True][1],
        "p50 still ms": 1e3 * float(np.percentile(still, 50)),
        "p50 moving ms": 1e3 * float(np.percentile(moving, 50)),
        "p99 still ms": 1e3 * float(np.percentile(still, 99)),
        "p99 moving ms": 1e3 * float(np.percentile(moving, 99)),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = {
        name: median(r[f"{name} moving ms"] / r[f"{name} still ms"] for r in rows)
        for name in ("p50", "p99")
    }
    return {
        "rows": rows,
        "p50 moving / still": ratios["p50"],
        "p99 moving / still": ratios["p99"],
        "epochs": sum(r["epochs"] for r in rows),
    }


if __name__ == "__main__":
    main()
