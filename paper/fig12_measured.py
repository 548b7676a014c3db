"""The paper's figure 12 with measured times: phases, gating side, activation scheduler.

    python -m paper.fig12_measured [--json FILE.json] [--figure FILE.png]

Time of one MoE layer on two attention and four expert instances, three hosts (network namespaces,
needs root): the exchange plus the experts of the busiest instance. Both are measured, one after the
other: the exchange between processes without compute (`paper.gating_exchange`; 2PC is the
fastest of its plans at that batch), the experts by the CPU kernel on one thread with the very slots
that the scheduler activates. Routing is synthetic (`topics`), half of the experts have a second
replica. Gate, attention and shared expert are left out: they are the same for all.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from benchmarks.exchange_adaptive import HIDDEN
from benchmarks.support.hosts import HostsUnavailable, Link
from benchmarks.support.report import machine_facts, print_table, write_json

from janus_moe.kernels.grouped_experts import grouped_experts
from janus_moe.policy.activation import LayerLayout, Policy, Scheduler
from janus_moe.policy.placement import initial_placement
from janus_moe.policy.synthetic import SyntheticRouter
from paper.gating_exchange import measure
from paper.pictures import picture

SHAPE, INSTANCES = "2A+2E+2E", 4
EXPERTS, TOP_K, SLOTS, WIDTH = 128, 8, 48, 384
BATCHES = (64, 256, 512)
ROUTINGS, ROUNDS, LAYERS = 8, 25, 3
VARIANTS: dict[str, tuple[str, str, Policy]] = {
    "1PC + AGate": ("1pc", "agate", "random"),
    "1PC + EGate": ("1pc", "egate", "random"),
    "2PC + AGate": ("2pc", "agate", "random"),
    "2PC + EGate": ("2pc", "egate", "random"),
    "2PC + EGate + exact": ("2pc", "egate", "exact"),
}


class Experts:
    """The expert half of one instance; weights of several layers take turns, so they are cold."""

    def __init__(self, layout: LayerLayout) -> None:
        self._layout = layout
        self._layers = cycle(
            (torch.randn(SLOTS, 2 * WIDTH, HIDDEN), torch.randn(SLOTS, HIDDEN, WIDTH))
            for _ in range(LAYERS)
        )

    def busiest(self, ids: Any, policy: Policy) -> tuple[int, torch.Tensor]:
        """Activated experts of the busiest instance, and its slots for every row; -1 elsewhere."""
        scheduler = Scheduler(self._layout, policy)
        rewrite = scheduler.rewrite(ids)
        instance = int(rewrite.activated.argmax())
        hosted = np.flatnonzero((self._layout.hosts == instance).any(axis=1))
        slot_of_expert = np.zeros(EXPERTS, np.int32)
        slot_of_expert[hosted] = np.arange(len(hosted))
        slots = np.where(rewrite.labels == instance, slot_of_expert[ids], -1)
        return int(rewrite.activated.max()), torch.from_numpy(slots.astype(np.int32))

    def seconds(self, slots: torch.Tensor) -> float:
        hidden = torch.randn(len(slots), HIDDEN)
        weights = torch.rand(slots.shape)
        gate_up, down = next(self._layers)
        started = time.perf_counter()
        grouped_experts(hidden, gate_up, down, slots, weights)
        return time.perf_counter() - started


def expert_times(batches: Sequence[int]) -> dict[tuple[int, Policy], tuple[float, float]]:
    """(batch, policy) -> activated experts of the busiest instance, its time in us: means over
    routings, each the best of some rounds in which policies take turns."""
    torch.set_num_threads(1)
    placement = initial_placement(1, EXPERTS, INSTANCES, INSTANCES * SLOTS - EXPERTS)
    experts = Experts(placement.layer_layout(0))
    router = SyntheticRouter("topics", EXPERTS, TOP_K, seed=1)
    policies: tuple[Policy, ...] = ("random", "exact")
    found: dict[tuple[int, Policy], tuple[float, float]] = {}
    for batch in batches:
        rng = np.random.default_rng(batch)
        draws = [np.ascontiguousarray(router.batch(batch, rng)) for _ in range(ROUTINGS)]
        work = {(i, p): experts.busiest(d, p) for i, d in enumerate(draws) for p in policies}
        best = dict.fromkeys(work, float("inf"))
        for _ in range(ROUNDS):
            for key, (_, slots) in work.items():
                best[key] = min(best[key], experts.seconds(slots))
        for policy in policies:
            activated = [work[i, policy][0] for i in range(ROUTINGS)]
            times = [1e6 * best[i, policy] for i in range(ROUTINGS)]
            found[batch, policy] = (sum(activated) / ROUTINGS, sum(times) / ROUTINGS)
    return found


def rows_of(
    exchange: Sequence[dict[str, Any]],
    experts: dict[tuple[int, Policy], tuple[float, float]],
    gbps: float,
) -> list[dict[str, Any]]:
    rows = []
    for batch in sorted({row["tokens"] for row in exchange}):
        for name, (phases, gating, policy) in VARIANTS.items():
            own = [
                row
                for row in exchange
                if (row["tokens"], row["gating"]) == (batch, gating)
                and row["plan"].startswith(phases)
            ]
            best = min(own, key=lambda row: float(row["us"]))
            activated, expert_us = experts[batch, policy]
            rows.append(
                {
                    "gbps": gbps,
                    "batch": batch,
                    "variant": name,
                    "plan": best["plan"],
                    "exchange_us": best["us"],
                    "activated": round(activated, 2),
                    "experts_us": round(expert_us),
                    "layer_us": round(best["us"] + expert_us),
                }
            )
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Time of a layer saved by each step, per rate and batch."""
    lines = []
    for gbps, batch in sorted({(row["gbps"], row["batch"]) for row in rows}):
        us = {r["variant"]: r["layer_us"] for r in rows if (r["gbps"], r["batch"]) == (gbps, batch)}
        lines.append(
            {
                "gbps": gbps,
                "batch": batch,
                "2PC_over_1PC": round(1 - us["2PC + EGate"] / us["1PC + EGate"], 3),
                "EGate_over_AGate": round(1 - us["2PC + EGate"] / us["2PC + AGate"], 3),
                "scheduling": round(1 - us["2PC + EGate + exact"] / us["2PC + EGate"], 3),
                "all": round(1 - us["2PC + EGate + exact"] / us["1PC + AGate"], 3),
            }
        )
    return lines


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    cells = sorted({(row["gbps"], row["batch"]) for row in rows})
    lines = len({gbps for gbps, _ in cells})
    columns = len(cells) // lines
    size = (3.6 * columns + 1, 2.2 * lines + 0.6)
    with picture(path, lines, columns, size=size, sharey=True) as (_, grid):
        for axis, (gbps, batch) in zip(grid.flat, cells, strict=True):
            own = [row for row in rows if (row["gbps"], row["batch"]) == (gbps, batch)]
            names = [row["variant"] for row in own]
            exchange = [row["exchange_us"] / 1000 for row in own]
            axis.barh(names, exchange, color="#3377bb", label="exchange")
            busy = [row["experts_us"] / 1000 for row in own]
            axis.barh(names, busy, left=exchange, color="#cc8844", label="busiest experts")
            axis.set_title(f"{gbps:g} Gb/s, B = {batch}", fontsize=10)
            axis.grid(alpha=0.25, axis="x")
        grid[0][0].invert_yaxis()
        for axis in grid[-1]:
            axis.set_xlabel("one MoE layer, ms")
        grid[0][-1].legend(fontsize=8, loc="lower right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="JSON with machine, commit and all figures")
    parser.add_argument("--figure", type=Path, help="picture of them (PNG)")
    parser.add_argument("--drawn-from", type=Path, help="draws an earlier result, measures nothing")
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 10.0])
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--budget", type=float, default=6.0, help="seconds per batch size")
    parser.add_argument("--runs", type=int, default=3, help="of the exchange; medians are taken")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.drawn_from:
        rows = json.loads(options.drawn_from.read_text(encoding="utf-8"))["rows"]
    else:
        experts = expert_times(options.batches)
        for gbps in options.rates:
            rows += rows_of(exchange_times(gbps, options), experts, gbps)
        print_table(rows)
    lines = summary(rows)
    print_table(lines)
    if options.json:
        facts = {"benchmark": "ablation", "shape": SHAPE, "hidden": HIDDEN, "experts": EXPERTS}
        facts |= {"top_k": TOP_K, "slots": SLOTS, "width": WIDTH, "machine": machine_facts()}
        write_json(options.json, {**facts, "summary": lines, "rows": rows})
    if options.figure:
        draw(rows, options.figure)


def exchange_times(gbps: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Of every plan and gating side: medians over runs."""
    runs = []
    for _ in range(options.runs):
        try:
            runs.append(measure(SHAPE, Link(gbps), options.batches, options.budget / options.runs))
        except HostsUnavailable as error:
            raise SystemExit(f"paper.fig12_measured: {error}") from None
    return [
        {**same[0], "us": round(median(row["us"] for row in same))}
        for same in zip(*runs, strict=True)
    ]


if __name__ == "__main__":
    main()
