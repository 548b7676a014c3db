"""What moving experts costs those whose tokens are under way.

    python -m benchmarks.rebalance --json benchmarks/results/rebalance.json

Claim: on the bundled model, 1A2E over shared memory, exchanging the experts of both instances again
and again adds at most 5 % to the 99th percentile of the time between two tokens.

One service; turns with and without rebalancing alternate, so that what else the machine does hits
both, and which of a pair comes first changes. Ratios are medians over pairs of turns, with 95 %
bootstrap intervals.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any, NamedTuple

import numpy as np
from benchmarks.support.program import Result, flag, main
from benchmarks.support.ratios import paired_ratio
from benchmarks.support.streams import Gaps, gaps_of

from janus_moe.cluster.service import Service
from janus_moe.config import EngineConfig
from janus_moe.profiling.live import running


class Turn(NamedTuple):
    """Streams that were served once.

    gaps: seconds between their tokens.
    epochs: placements that were taken meanwhile.
    """

    gaps: Gaps
    epochs: int


def measure(options: argparse.Namespace) -> Result:
    pairs = asyncio.run(serve(options))
    still, moving = (list(side) for side in zip(*pairs, strict=True))
    ratios: dict[str, float] = {}
    for percent in (50, 99):
        p_moving, p_still = percentiles(moving, percent), percentiles(still, percent)
        ratios |= paired_ratio(p_moving, p_still).columns(f"p{percent} moving / still")
    return {
        "rows": [row(*pair) for pair in pairs],
        **ratios,
        "epochs": sum(t.epochs for t in moving),
    }


async def serve(options: argparse.Namespace) -> list[tuple[Turn, Turn]]:
    """Returns (still, moving) of every pair; the first one, which warms up, is not among them."""
    config = EngineConfig(
        model=options.model, expert_instances=2, transport="shm", threads=1, max_model_len=1024
    )
    pairs = []
    async with running(config) as service:
        for number in range(options.rounds + 1):
            pair = {}
            for is_moving in (True, False) if number % 2 else (False, True):
                pair[is_moving] = await turn(service, options, is_moving)
            if number:
                pairs.append((pair[False], pair[True]))
    return pairs


async def turn(service: Service, options: argparse.Namespace, moving: bool) -> Turn:
    epoch = service.rebalancer.placement.epoch
    mover = asyncio.create_task(keep_moving(service, options.pause)) if moving else None
    gaps = await gaps_of(service, options.streams, options.tokens)
    epochs = service.rebalancer.placement.epoch - epoch
    if mover is not None:
        mover.cancel()
        await asyncio.gather(mover, return_exceptions=True)
        while service.rebalancer.status.state != "idle":
            await asyncio.sleep(0.01)
    return Turn(gaps, epochs)


async def keep_moving(service: Service, pause_s: float) -> None:
    """Exchanges the experts of the two instances, again and again."""
    while True:
        if service.rebalancer.status.state == "idle":
            await asyncio.sleep(pause_s)
            assert service.rebalancer.status.error is None
            slots = [layer[::-1] for layer in service.rebalancer.placement.slots]
            await service.rebalancer.rebalance(slots)
        await asyncio.sleep(0.02)


def percentiles(turns: list[Turn], percent: int) -> list[float]:
    return [float(np.percentile(turn.gaps, percent)) for turn in turns]


def row(still: Turn, moving: Turn) -> dict[str, Any]:
    sides = {"still": still, "moving": moving}
    return {"epochs": moving.epochs} | {
        f"p{percent} {name} ms": 1e3 * float(np.percentile(side.gaps, percent))
        for percent in (50, 99)
        for name, side in sides.items()
    }


if __name__ == "__main__":
    main(
        __doc__,
        measure,
        flag("--model", default="bundled"),
        flag("--streams", type=int, default=8),
        flag("--tokens", type=int, default=600, help="per stream and turn"),
        flag("--pause", type=float, default=0.0, help="seconds between two rebalances"),
        flag("--rounds", type=int, default=10, help="pairs of turns"),
    )
