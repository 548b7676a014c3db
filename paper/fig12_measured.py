"""Figure 12 with measured times: phases, gating side, activation scheduler, one after another.

    python -m paper.fig12_measured [--json FILE.json] [--rates 1 10]

Time of one MoE layer on two attention and four expert instances, three hosts (network namespaces,
needs root): the exchange plus the experts of the busiest instance. Both are measured, one after the
other: the exchange between processes without compute (`paper.gating_exchange`; 2PC is the fastest
of its plans at that batch), the experts by the CPU kernel on one thread with the very slots that
the scheduler activates. Routing is synthetic (`topics`), half of the experts have a second replica.
Gate, attention and shared expert are left out: they are the same for all.
`python -m paper.measured --only ablation_measured` draws the result.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import cycle
from statistics import median
from typing import Any

import numpy as np
import torch
from benchmarks.support.exchange_runs import HIDDEN
from benchmarks.support.hosts import Link
from benchmarks.support.program import Result, flag, main
from benchmarks.support.report import print_table

from janus_moe.kernels.grouped_experts import grouped_experts
from janus_moe.policy.activation import LayerLayout, Policy, Scheduler
from janus_moe.policy.placement import initial_placement
from janus_moe.policy.synthetic import SyntheticRouter
from paper.gating_exchange import measure as measure_exchange

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
    """The experts of one instance; weights of several layers take turns, so they are cold."""

    def __init__(self, layout: LayerLayout) -> None:
        self._layout = layout
        self._layers = cycle(
            (torch.randn(SLOTS, 2 * WIDTH, HIDDEN), torch.randn(SLOTS, HIDDEN, WIDTH))
            for _ in range(LAYERS)
        )

    def busiest(self, ids: Any, policy: Policy) -> tuple[int, torch.Tensor]:
        """Returns the activated experts of the busiest instance, and its slots.

        ids: [tokens, top_k] int32, experts.
        slots: [tokens, top_k] int32, of that instance; -1 where another one computes the pair.
        """
        scheduler = Scheduler(self._layout, policy)
        rewrite = scheduler.rewrite(ids)
        instance = int(rewrite.activated.argmax())
        hosted = np.flatnonzero((self._layout.holders == instance).any(axis=1))
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
    """Returns (batch, policy) -> activated experts of the busiest instance, and its time in us.

    Both are means over routings; each time is the best of some rounds in which policies take turns.
    """
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
    """Returns the share of a layer's time that each step saves, per rate and batch."""
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


def exchange_times(gbps: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns medians over runs, of every plan and gating side."""
    budget_s = options.budget / options.runs
    runs = [
        measure_exchange(SHAPE, Link(gbps), options.batches, budget_s) for _ in range(options.runs)
    ]
    return [
        {**same[0], "us": round(median(row["us"] for row in same))}
        for same in zip(*runs, strict=True)
    ]


def measure(options: argparse.Namespace) -> Result:
    experts = expert_times(options.batches)
    rows: list[dict[str, Any]] = []
    for gbps in options.rates:
        rows += rows_of(exchange_times(gbps, options), experts, gbps)
    lines = summary(rows)
    print_table(lines)
    facts = {"shape": SHAPE, "hidden": HIDDEN, "experts": EXPERTS, "top_k": TOP_K}
    return {**facts, "slots": SLOTS, "width": WIDTH, "summary": lines, "rows": rows}


if __name__ == "__main__":
    main(
        __doc__,
        measure,
        flag("--rates", type=float, nargs="+", default=[1.0, 10.0], help="Gb/s"),
        flag("--batches", type=int, nargs="+", default=list(BATCHES)),
        flag("--budget", type=float, default=6.0, help="seconds per batch size"),
        flag("--runs", type=int, default=3, help="of the exchange; medians are taken"),
    )
