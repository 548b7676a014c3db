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
from typing import Any, NamedTuple

import numpy as np
from benchmarks.support.program import Result, flag, main
from benchmarks.support.ratios import paired_ratio
from benchmarks.support.streams import gaps_of

from janus_moe.cluster.service import Service
from janus_moe.config import EngineConfig
from janus_moe.experts.recording import RoutingRecorder
from janus_moe.policy.routing_trace import RoutingTrace
from janus_moe.profiling.live import running


class Turn(NamedTuple):
    """Streams that were served once.

    tokens_per_s: of all streams together.
    gap_s: median seconds between two tokens.
    """

    tokens_per_s: float
    gap_s: float


def measure(options: argparse.Namespace) -> Result:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "routing.jrt"
        without, recording = asyncio.run(serve(options, path))
        trace = RoutingTrace.load(path)
        recorded = {
            "recorded tokens": trace.num_tokens,
            "file bytes": path.stat().st_size,
            "recorder us per step": recorder_us(trace, options.streams, path),
        }
    rates = paired_ratio([t.tokens_per_s for t in recording], [t.tokens_per_s for t in without])
    gaps = paired_ratio([t.gap_s for t in recording], [t.gap_s for t in without])
    return {
        "rows": [row(*pair) for pair in zip(without, recording, strict=True)],
        **rates.columns("tokens per second, recording / not"),
        **gaps.columns("p50 between tokens, recording / not"),
        **recorded,
    }


async def serve(options: argparse.Namespace, path: Path) -> tuple[list[Turn], list[Turn]]:
    """Returns the turns without and with recording; the first pair warms up and is left out."""
    turns: dict[bool, list[Turn]] = {False: [], True: []}
    async with contextlib.AsyncExitStack() as stack:
        services = {
            recording: await stack.enter_async_context(
                running(settings(options.model, str(path) if recording else None))
            )
            for recording in (False, True)
        }
        for number in range(options.rounds + 1):
            for recording in (True, False) if number % 2 else (False, True):
                turns[recording].append(await turn_of(services[recording], options))
    return turns[False][1:], turns[True][1:]


async def turn_of(service: Service, options: argparse.Namespace) -> Turn:
    start = time.perf_counter()
    gaps = await gaps_of(service, options.streams, options.tokens)
    seconds = time.perf_counter() - start
    return Turn(options.streams * options.tokens / seconds, float(np.median(gaps)))


def row(without: Turn, recording: Turn) -> dict[str, Any]:
    return {
        "tok/s without": without.tokens_per_s,
        "tok/s recording": recording.tokens_per_s,
        "p50 without ms": 1e3 * without.gap_s,
        "p50 recording ms": 1e3 * recording.gap_s,
    }


def recorder_us(trace: RoutingTrace, batch_size: int, path: Path) -> float:
    """Returns microseconds per step of all layers' `record` and of `end_of_step`.

    The writing's share is included; it is the fastest of five runs.
    """
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
    main(
        __doc__,
        measure,
        flag("--model", default="bundled"),
        flag("--streams", type=int, default=8),
        flag("--tokens", type=int, default=300, help="per stream and turn"),
        flag("--rounds", type=int, default=16, help="pairs of turns"),
    )
