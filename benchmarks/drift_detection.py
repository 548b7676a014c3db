"""How soon a change of routing is found, and how often one is found that is none; offline.

    python -m benchmarks.drift_detection [--json FILE]

Streams of tokens as a service has them: requests at a time, each with a topic of its own for all
its tokens (`policy.synthetic`, "topics"; 64 experts, top-4, 4 layers). Stationary streams draw
topics from the same eight for ever; drifting ones from eight others after some step, where requests
that are under way end first. `RoutingWindow` sees every step and looks for a change as an expert
instance does. A false alarm is a change found in a stationary stream: the history before it is
forgotten. The delay counts steps from the change until what is left has mostly the new topics.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from benchmarks.support.report import machine_facts, print_table, write_json
from numpy.typing import NDArray

from janus_moe.experts.instance import BUCKET_BATCHES, WINDOW_BUCKETS
from janus_moe.policy import change
from janus_moe.policy.statistics import RoutingWindow
from janus_moe.policy.synthetic import SyntheticRouter

LAYERS, EXPERTS, TOP_K = 4, 64, 4
WINDOW = WINDOW_BUCKETS * BUCKET_BATCHES
WARM_STEPS, LOST_STEPS = 1200, 600  # before a change; after so many more it counts as missed
FIRST, SECOND = range(8), range(8, 16)
STREAMS = {  # name: (requests at a time, tokens of a request, 0: every token has its own topic)
    "16 independent tokens": (16, 0),
    "16 requests of 36 tokens": (16, 36),
    "64 requests of 200 tokens": (64, 200),
    "16 requests of 200 tokens": (16, 200),
    "4 requests of 200 tokens": (4, 200),
}


class Rule(NamedTuple):
    """buckets: of the window. min_batches: after the change. every: steps between two looks."""

    buckets: int
    min_batches: int
    every: int
    noise_factor: float = change.NOISE_FACTOR


RULES = {
    "coarse": Rule(8, 64, 64),
    "as served": Rule(WINDOW_BUCKETS, change.MIN_BATCHES, BUCKET_BATCHES),
    "less noise allowed for": Rule(WINDOW_BUCKETS, change.MIN_BATCHES, BUCKET_BATCHES, 2.0),
}


def stream(kind: str, num_steps: int, changes_at: int, seed: int) -> Iterator[NDArray[np.int32]]:
    """[layers, tokens, top_k] ids of each step."""
    width, length = STREAMS[kind]
    rng = np.random.default_rng(seed)
    routers = [SyntheticRouter("topics", EXPERTS, TOP_K, layer) for layer in range(LAYERS)]
    log_weights = np.stack([router._log_weights for router in routers])
    left = rng.integers(1, length + 1, width) if length else np.zeros(width, np.int64)
    topic = rng.choice(FIRST, width)
    for step in range(num_steps):
        pool = SECOND if step >= changes_at else FIRST
        over = left <= 0
        topic[over] = rng.choice(pool, int(over.sum()))
        left[over] = length
        left -= 1
        noise = np.log(rng.standard_exponential((LAYERS, width, EXPERTS)))
        keys = noise - log_weights[:, topic]
        yield np.argpartition(keys, TOP_K - 1, axis=2)[:, :, :TOP_K].astype(np.int32)


def alarms(batches: Iterator[NDArray[np.int32]]) -> dict[str, list[tuple[int, int]]]:
    """Per rule: (step, batches that were kept) of every change that is found."""
    windows = {
        name: RoutingWindow(LAYERS, EXPERTS, WINDOW, rule.buckets, coactivation_stride=0)
        for name, rule in RULES.items()
    }
    found: dict[str, list[tuple[int, int]]] = {name: [] for name in RULES}
    for step, ids in enumerate(batches, start=1):
        for name, rule in RULES.items():
            for layer in range(LAYERS):
                windows[name].record(layer, ids[layer])
            change.MIN_BATCHES, change.NOISE_FACTOR = rule.min_batches, rule.noise_factor
            if step % rule.every == 0 and windows[name].forget_change():
                found[name].append((step, int(windows[name].read().num_batches[0])))
    return found


def judge(kind: str, seeds: int, steps: int) -> list[dict[str, Any]]:
    calm = [alarms(stream(kind, steps, steps, seed)) for seed in range(seeds)]
    delays: dict[str, list[float]] = {name: [] for name in RULES}
    for seed in range(seeds):
        at = WARM_STEPS + 17 * seed  # a change may come at any place of a bucket
        for name, found in alarms(stream(kind, at + LOST_STEPS, at, 1000 + seed)).items():
            new = [step - at for step, kept in found if step > at and kept < 2 * (step - at)]
            delays[name].append(new[0] if new else np.inf)
    return [
        {
            "stream": kind,
            "rule": name,
            "false alarms per 10,000 steps": 1e4
            * sum(len(run[name]) for run in calm)
            / (steps * seeds),
            "delay, median": float(np.median(delays[name])),
            "delay, worst": max(delays[name]),
        }
        for name in RULES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10_000, help="of a stationary stream")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [row for kind in STREAMS for row in judge(kind, options.seeds, options.steps)]
    print_table(rows)
    rules = {name: rule._asdict() for name, rule in RULES.items()}
    if options.json:
        write_json(options.json, {"machine": machine_facts(), "rules": rules, "rows": rows})


if __name__ == "__main__":
    main()
