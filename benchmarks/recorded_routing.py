"""Every policy on every placement with the recorded routing of the bundled model.

    python -m benchmarks.recorded_routing [--quick] [--json FILE.json] [--traces FOLDER]

Claims: see `benchmarks.support.activation`. The engine itself records the routing
(`--record-routing`) on the held-out files of the model's corpus, file after file: half of the files
to plan placements on, the other half to judge them by. A batch is tokens drawn at random from a
half, as in decode steps of unrelated requests. Synthetic routing of the same shape stands beside
it, drawn anew for each half.

Placements `coactivation` and `eplb` follow the token counts. `janus` follows P(active) at the batch
size it is judged at, as a rebalance of a running service does.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from benchmarks.support.activation import (
    KINDS,
    METHODS,
    POLICIES,
    Ids,
    claims,
    even_split,
    print_bounds,
    print_claims,
)
from benchmarks.support.program import Result, flag, main
from examples.bundled_model.corpus import encode_files, read_standard_library, split_corpus
from tokenizers import Tokenizer

from janus_moe import LLM
from janus_moe.model.source import resolve_model
from janus_moe.planner.simulation.routing_replay import mean_max_activated, observe, plan_placement
from janus_moe.policy.placement import even_capacity
from janus_moe.policy.routing_trace import RoutingTrace
from janus_moe.policy.statistics import RoutingStatistics
from janus_moe.policy.synthetic import SyntheticRouter

POOLS = (6, 8, 12, 16, 32)
REPLICATIONS = (1.0, 1.125, 1.25, 1.5)
BATCH_SIZES = tuple(2**power for power in range(13))  # 1 to 4096
WINDOW = 1024  # tokens of a prompt; the model has seen no more
PLANNED_ON_TOKENS = 65_536  # of synthetic routing

Batch = Callable[[int, int, np.random.Generator], Ids]
"""(layer, tokens, rng) -> [tokens, top_k] ids."""


class Source(NamedTuple):
    """Routing to plan on and routing to judge by.

    kind: "recorded" or the synthetic router's.
    seen: statistics of the routing to plan on.
    batch: draws from the routing to judge by.
    """

    kind: str
    seen: RoutingStatistics
    batch: Batch

    @property
    def num_layers(self) -> int:
        return len(self.seen.num_tokens)

    @property
    def num_experts(self) -> int:
        return int(self.seen.tokens.shape[1])


def record(folder: Path, num_tokens: int) -> tuple[RoutingTrace, RoutingTrace]:
    """Two traces of the bundled model are returned, of disjoint halves of the held-out files."""
    tokenizer = Tokenizer.from_file(str(resolve_model("bundled") / "tokenizer.json"))
    files = encode_files(tokenizer, split_corpus(read_standard_library()).held_out)
    traces = []
    for half in range(2):
        path = folder / f"bundled-{half}.jrt"
        own = np.concatenate(files[half::2])[:num_tokens]
        windows = [own[start : start + WINDOW].tolist() for start in range(0, len(own), WINDOW)]
        if not path.exists():
            settings: dict[str, Any] = {"prefix_caching": "off", "max_model_len": 2048}
            with LLM(record_routing=str(path), **settings) as engine:
                engine.generate(windows, max_tokens=1, temperature=0)
        traces.append(RoutingTrace.load(path))
    return traces[0], traces[1]


def recorded(planned_on: RoutingTrace, judged_by: RoutingTrace) -> Source:
    return Source("recorded", observe(planned_on), judged_by.sample)


def synthetic(kind: Any, num_experts: int, top_k: int) -> Source:
    router = SyntheticRouter(kind, num_experts, top_k, seed=1)
    ids = router.batch(PLANNED_ON_TOKENS, np.random.default_rng(2)).astype(np.uint8)
    trace = RoutingTrace(num_experts, ids[None], np.array([len(ids)]))
    return Source(kind, observe(trace), lambda layer, size, rng: router.batch(size, rng))


def grid(source: Source, num_batches: int) -> Iterator[dict[str, Any]]:
    """One row per pool, replication and batch size; figures are means over layers and batches."""
    rng = np.random.default_rng(3)
    for size in BATCH_SIZES:
        count = num_batches if size <= 256 else num_batches // 4
        batches = [
            [source.batch(layer, size, rng) for _ in range(count)]
            for layer in range(source.num_layers)
        ]
        everything = [ids for layer in batches for ids in layer]
        for pool, replication in itertools.product(POOLS, REPLICATIONS):
            redundant = round((replication - 1) * source.num_experts)
            capacity = even_capacity(source.num_experts, pool, redundant)
            placements = {m: plan_placement(source.seen, capacity, m, size) for m in METHODS}
            yield {
                "kind": source.kind,
                "instances": pool,
                "replication": replication,
                "batch": size,
                "even": even_split(everything, pool),
                "a_max": {
                    f"{policy}/{method}": round(mean_max_activated(batches, placement, policy), 4)
                    for method, placement in placements.items()
                    for policy in POLICIES
                },
            }


def measure(options: argparse.Namespace) -> Result:
    num_tokens, num_batches = (8192, 8) if options.quick else (49_152, 48)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.traces or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        planned_on, judged_by = record(folder, num_tokens)
    shape = (judged_by.num_experts, judged_by.top_k)
    real = recorded(planned_on, judged_by)
    rows = [
        row
        for source in (real, *(synthetic(kind, *shape) for kind in KINDS))
        for row in grid(source, num_batches)
    ]
    print_bounds(rows)
    verdicts = {
        name: claims([r for r in rows if (r["kind"] == "recorded") is (name == "recorded")])
        for name in ("recorded", "synthetic")
    }
    for name, own in verdicts.items():
        print_claims(own, f"Claims, {name}")
    return {
        "seconds": time.perf_counter() - began,
        "recorded": {
            "model": "bundled",
            "text": "held-out files of its corpus; placements planned on every second one",
            "planned_on_tokens": planned_on.num_tokens,
            "judged_by_tokens": judged_by.num_tokens,
            "layers": judged_by.num_layers,
        },
        "experts": shape[0],
        "top_k": shape[1],
        "batches_per_layer_and_cell": num_batches,
        "grid": rows,
        "claims": verdicts,
    }


if __name__ == "__main__":
    main(
        __doc__,
        measure,
        flag("--quick", action="store_true", help="fewer tokens and batches"),
        flag("--traces", type=Path, help="keep the recorded files here, or use those"),
    )
