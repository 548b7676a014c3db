"""What recording the routing costs those who are served meanwhile.

    python -m benchmarks.recording --json benchmarks/results/recording.json

Claim: on the bundled model, 1A2E over shared memory, `--record-routing` lowers the tokens per
second and raises the median time between two tokens by at most 5 %.

Two services, one that records and one that does not, take turns, so that what else the machine does
hits both; which of a pair comes first changes. What waits is blocked and uses no core. Ratios are
of pairs of turns. The recorder's own time per step is measured beside it, alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmarks.rebalance import stream
from benchmarks.support.report import machine_facts, print_table, write_json

from janus_moe.cluster.service import Service
from janus_moe.config import EngineConfig
from janus_moe.experts.recording import RoutingRecorder
from janus_moe.policy.routing_trace import RoutingTrace
from janus_moe.profiling.live import running


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=300, help="per stream and turn")
    parser.add_argument("--rounds", type=int, default=16, help="pairs of turns")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "routing.jrt"
        result = asyncio.run(measure(arguments, path))
        trace = RoutingTrace.load(path)
        result["recorded tokens"], result["file bytes"] = trace.num_tokens, path.stat().st_size
        result["recorder us per step"] = recorder_us(trace, arguments.streams, path)
    print_table(result["rows"])
    print({key: value for key, value in result.items() if key != "rows"})
    if arguments.json:
        write_json(arguments.json, {"machine": machine_facts(), **result})


async def measure(arguments: argparse.Namespace, path: Path) -> dict[str, Any]:
    rows = []
    async with contextlib.AsyncExitStack() as stack:
        services = {
            recording: await stack.enter_async_context(
                running(settings(arguments.model, str(path) if recording else None))
            )
            for recording in (False, True)
        }
        for number in range(arguments.rounds + 1):
            pair = {}
            for recording in (True, False) if number % 2 else (False, True):
                pair[recording] = await turn(services[recording], arguments)
            if number:  # the first round warms up
                rows.append(row(pair))
    return {
        "rows": rows,
        "tokens per second, recording / not": median(
            r["tok/s recording"] / r["tok/s without"] for r in rows
        ),
        "p50 between tokens, recording / not": median(
            r["p50 recording ms"] / r["p50 without ms"] for r in rows
        ),
    }


async def turn(service: Service, arguments: argparse.Namespace) -> tuple[float, float]:
    """(tokens per second of all streams together, median seconds between two tokens)."""
    start = time.perf_counter()
    gaps = await asyncio.gather(
        *(stream(service, arguments.tokens, index) for index in range(arguments.streams))
    )
    seconds = time.perf_counter() - start
    return arguments.streams * arguments.tokens / seconds, float(np.median(np.concatenate(gaps)))


def row(pair: dict[bool, tuple[float, float]]) -> dict[str, Any]:
    return {
        "tok/s without": pair[False][0],
        "tok/s recording": pair[True][0],
        "p50 without ms": 1e3 * pair[False][1],
        "p50 recording ms": 1e3 * pair[True][1],
    }


def recorder_us(trace: RoutingTrace, batch_size: int, path: Path) -> float:
    """Microseconds per step of all layers' `record` and of `end_of_step`, the writing's share
    included; fastest of five runs."""
    rng = np.random.default_rng(0)
    batches = [trace.sample(layer, batch_size, rng) for layer in range(trace.num_layers)]
    best, steps = float("inf"), 5_000
    for _ in range(5):
        recorder = RoutingRecorder(path, trace.num_layers, trace.num_experts, 2**18)
        start = time.perf_counter()
        for _ in range(steps):
            for layer, expert_ids in enumerate(batches):
                recorder.record(layer, expert_ids)
            recorder.end_of_step()
        best = min(best, time.perf_counter() - start)
        recorder.close()
    return 1e6 * best / steps


def settings(model: str, record_routing: str | None) -> EngineConfig:
    return EngineConfig(
        model=model,
        expert_instances=2,
        transport="shm",
        threads=1,
        max_model_len=1024,
        record_routing=record_routing,
    )


if __name__ == "__main__":
    main()
