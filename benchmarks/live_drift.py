"""How fast live rebalancing follows a change of topic.

    python -m benchmarks.live_drift [--before 300 --after 1000] [--json FILE.json]

The model is synthetic (`benchmarks.support.topical_model`): its two topics have other favourite
experts in every layer. 2 attention and 4 expert instances in processes of their own, 80 slots for
64 experts per layer, complete prompts of the first topic, then, from one step on, of the second.
Requests of the first topic that are under way go on to their end, and no stream pauses. Compared
are

on     --rebalance-interval 1, from the placement that it found for the first topic
off    that placement for good
bound  the placement planned on statistics of the second topic alone, for good: on that topic, all
       that rebalancing can reach

The figure is the number of experts that the busiest instance activates, mean over the layers of a
step. Recovered means: its mean over 64 steps is within 5 % of the bound's. The three take turns,
round after round; seconds and milliseconds are those of a machine that other programs share.

Beside it, offline: the routing of each topic, recorded by the engine, on placements planned on the
same topic and on the other.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmarks.support.activation import METHODS, even_split
from benchmarks.support.program import Result, flag, main
from benchmarks.support.report import print_table
from benchmarks.support.topical_model import NUM_TOPICS, make_checkpoint, prompt
from benchmarks.support.topical_service import Log, fitted_slots, serve_change
from msgspec import to_builtins
from numpy.typing import NDArray

from janus_moe import LLM
from janus_moe.config import EngineConfig
from janus_moe.planner.simulation.routing_replay import mean_max_activated, observe, plan_placement
from janus_moe.policy.placement import even_capacity
from janus_moe.policy.routing_trace import RoutingTrace

REPLICAS = 16  # of 64 experts
RUNNING = 64  # steps of the running mean
TOLERANCE = 0.05
SHOWN = (
    *("round", "rebalancing", "before", "worst", "at the end"),
    *("steps to recover", "s to recover", "epochs", "p50 ms", "p99 ms"),
)
REBALANCING = ("on", "off", "bound")


def measure(options: argparse.Namespace) -> Result:
    with tempfile.TemporaryDirectory() as scratch:
        model = make_checkpoint(Path(scratch) / "topical")
        offline = offline_table(model)
        print_table(offline, "Routing of the second topic, exact, mean a_max; planned on ...")
        runs, num_answers = asyncio.run(serve_all(model, options))
    print_table([{key: run[key] for key in SHOWN} for run in runs])
    return {
        "running_mean_steps": RUNNING,
        **verdict(runs),
        "different answers per probe": num_answers / NUM_TOPICS,
        "offline": offline,
        "runs": runs,
    }


def settings(model: Path, interval_s: float) -> EngineConfig:
    return EngineConfig(
        model=str(model),
        tokenizer="bundled",  # only ids are exchanged
        attention_instances=2,
        expert_instances=4,
        redundant_experts=REPLICAS,
        rebalance_interval=interval_s,
        rebalance_spare_slots=1,
        threads=1,
        max_model_len=256,
        prefix_caching="off",
        seed=1,
    )


async def serve_all(model: Path, options: argparse.Namespace) -> tuple[list[dict[str, Any]], int]:
    """Runs all rounds; services of their own find the placements that they start from.

    Returns a row of each run, and how many different answers the probes got.
    """
    planned = [await fitted_slots(settings(model, 0.0), topic, options.streams) for topic in (0, 1)]
    runs: list[dict[str, Any]] = []
    answers: set[tuple[int, tuple[int, ...]]] = set()
    for number in range(options.rounds):
        for name in REBALANCING[::-1] if number % 2 else REBALANCING:
            start = planned[1 if name == "bound" else 0]
            config = settings(model, options.interval if name == "on" else 0.0)
            log = await serve_change(config, start, options.streams, options.before, options.after)
            answers |= log.answers
            runs.append({"round": number, "rebalancing": name, **summary(log)})
            print({key: runs[-1].get(key) for key in SHOWN}, flush=True)
    level = median(run["at the end"] for run in runs if run["rebalancing"] == "bound")
    for run in runs:
        run |= recovery(run, level)
    return runs, len(answers)


def summary(log: Log) -> dict[str, Any]:
    """Returns levels, times between tokens after the change, and every tenth step of the curve."""
    max_activated, change = np.array(log.max_activated), log.changed_at
    gaps_ms = [1e3 * gap for when, gap in log.gaps if when > log.changed_s]
    switches = np.flatnonzero(np.diff(log.epochs)) + 1 - change
    return {
        "before": float(max_activated[change // 2 : change].mean()),
        "at the end": float(max_activated[(change + len(max_activated)) // 2 :].mean()),
        "p50 ms": float(np.percentile(gaps_ms, 50)),
        "p99 ms": float(np.percentile(gaps_ms, 99)),
        "probes": log.num_probes,
        "epochs": int((switches > 0).sum()),
        "new epochs at steps after the change": switches[switches > 0].tolist(),
        "steps": (np.arange(len(max_activated))[::10] - change).tolist(),
        "seconds": (np.array(log.times)[::10] - log.changed_s).round(3).tolist(),
        "running mean": running_mean(max_activated)[::10].round(4).tolist(),
    }


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Averages the latest `RUNNING` steps, fewer at the start.

    values: [steps].
    """
    total = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - RUNNING)
    mean: NDArray[np.float64] = (total[ends] - total[starts]) / (ends - starts)
    return mean


def recovery(run: dict[str, Any], level: float) -> dict[str, float | None]:
    """Finds the first running mean of steps after the change alone that is close to `level`.

    worst: the highest of these means.
    steps to recover, s to recover: until the first that is close; None means that none is.
    """
    after = [
        (step, second, mean)
        for step, second, mean in zip(
            run["steps"], run["seconds"], run["running mean"], strict=True
        )
        if step >= RUNNING
    ]
    back = next((a for a in after if a[2] <= (1 + TOLERANCE) * level), (None, None, None))
    worst = max(mean for _, _, mean in after)
    return {"worst": worst, "steps to recover": back[0], "s to recover": back[1]}


def verdict(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns medians over the rounds."""

    def of(name: str, key: str) -> float | None:
        values = [run[key] for run in runs if run["rebalancing"] == name]
        return None if None in values else median(values)

    pairs = [
        (one["p99 ms"], other["p99 ms"])
        for one in runs
        for other in runs
        if (one["round"], one["rebalancing"], other["rebalancing"]) == (other["round"], "on", "off")
    ]
    return {
        **{f"a_max at the end, {name}": of(name, "at the end") for name in REBALANCING},
        "worst mean of 64 steps, on": of("on", "worst"),
        **{f"steps to recover, {name}": of(name, "steps to recover") for name in ("on", "bound")},
        "s to recover, on": of("on", "s to recover"),
        "p99 between tokens, on / off": median(one / other for one, other in pairs),
    }


def offline_table(model: Path) -> list[dict[str, Any]]:
    """Returns mean a_max of the second topic's tokens by pool, batch size and method, `exact`."""
    traces = [record(model, topic) for topic in range(NUM_TOPICS)]
    seen, judged = [observe(trace) for trace in traces], traces[1]
    rows, rng = [], np.random.default_rng(0)
    for pool in (4, 6, 8):
        capacity = even_capacity(judged.num_experts, pool, REPLICAS)
        for size in (16, 64):
            batches = [
                [judged.sample(layer, size, rng) for _ in range(64)]
                for layer in range(judged.num_layers)
            ]
            row: dict[str, Any] = {"instances": pool, "batch": size}
            row["even"] = even_split([ids for layer in batches for ids in layer], pool)
            for method in METHODS:
                for where, own in zip(("the other", "it"), seen, strict=True):
                    placement = plan_placement(own, capacity, method, size)
                    row[f"{method}, {where}"] = mean_max_activated(batches, placement, "exact")
            rows.append(row)
    return rows


def record(model: Path, topic: int) -> RoutingTrace:
    """Lets the engine itself record the routing of 64 completions of one topic."""
    path = model / f"topic-{topic}.jrt"
    prompts = [prompt(topic, 12, seed) for seed in range(64)]
    config = to_builtins(settings(model, 0.0)) | {"record_routing": str(path)}
    with LLM(**config) as engine:
        engine.generate(prompts, max_tokens=64, temperature=1.0, ignore_eos=True, seed=topic)
    return RoutingTrace.load(path)


if __name__ == "__main__":
    main(
        __doc__,
        measure,
        flag("--streams", type=int, default=16),
        flag("--before", type=int, default=400, help="steps before the change"),
        flag("--after", type=int, default=1600, help="steps after it"),
        flag("--interval", type=float, default=1.0, help="--rebalance-interval"),
        flag("--rounds", type=int, default=3),
    )
