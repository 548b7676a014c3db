"""What people see in the terminal while a service runs: a line every ten seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from rich.console import Console

from janus_moe.engine.engine import Engine
from janus_moe.engine.snapshot import EngineSnapshot

REPORT_EVERY_S = 10.0


async def report_throughput(engine: Engine, console: Console | None = None) -> None:
    """A line every ten seconds for as long as there is something to tell."""
    console = console or Console(stderr=True, highlight=False)
    before, since = engine.snapshot(), time.monotonic()
    while True:
        await asyncio.sleep(REPORT_EVERY_S)
        after, now = engine.snapshot(), time.monotonic()
        if after.generation_tokens != before.generation_tokens or after.running or after.waiting:
            console.print(throughput_line(before, after, now - since), soft_wrap=True)
        before, since = after, now


def throughput_line(before: EngineSnapshot, after: EngineSnapshot, seconds: float) -> str:
    """Rates between two snapshots, and the state at the second."""
    generated = (after.generation_tokens - before.generation_tokens) / seconds
    prompted = (after.prompt_tokens - before.prompt_tokens) / seconds
    mean, largest = _activated_between(before, after)
    return (
        f"{generated:7.1f} tok/s out, {prompted:7.1f} tok/s in | running {after.running}, "
        f"waiting {after.waiting} | KV {after.kv_usage:.0%} | activated experts per instance "
        f"{mean:.1f} mean, {largest:.1f} max"
    )


def _activated_between(before: EngineSnapshot, after: EngineSnapshot) -> tuple[float, float]:
    """(mean over instances, busiest instance) of distinct activated experts per layer pass."""
    passes = max(1, after.layer_passes - before.layer_passes)

    def per_pass(of: Callable[[EngineSnapshot], float]) -> float:
        return (of(after) * after.layer_passes - of(before) * before.layer_passes) / passes

    def mean(snapshot: EngineSnapshot) -> float:
        counts = snapshot.activated_experts
        return sum(counts.values()) / max(1, len(counts))

    return per_pass(mean), per_pass(lambda snapshot: snapshot.max_activated_experts)
