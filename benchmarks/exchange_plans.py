"""What exchange plans cost to write: messages of a batch, programs of an instance, closed forms.

    python -m benchmarks.exchange_plans [--json FILE.json] [--rounds 50]

The claim: less than a millisecond per step with gating on the expert side, once per token counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.support.report import machine_facts, print_table, write_json

from janus_moe.spec import EXCHANGE_PLANS
from janus_moe.transport.exchange_plans import EveryRow, ExchangePlan, RoutedRows, Topology
from janus_moe.transport.exchange_plans.counts import RowBytes, closed_form

TOPOLOGIES = {
    "2A2E/2": Topology((0, 0), (1, 1)),
    "4A4E/4": Topology((0, 0, 1, 1), (2, 2, 3, 3)),
    "6A8E/4": Topology((0, 0, 0, 1, 1, 1), (2, 2, 2, 2, 3, 3, 3, 3)),
}
TOKENS, TOP_K = 64, 8


def median_us(run: Callable[[int], object], rounds: int) -> float:
    seconds = []
    for number in range(rounds):
        started = time.perf_counter()
        run(number)
        seconds.append(time.perf_counter() - started)
    return round(1e6 * statistics.median(seconds), 1)


def measure(rounds: int) -> list[dict[str, Any]]:
    rows = []
    generator = np.random.default_rng(0)
    for name, topology in TOPOLOGIES.items():
        tokens = (TOKENS,) * topology.num_attention_instances
        shape = (TOKENS, TOP_K)
        routing = [generator.integers(0, topology.num_expert_instances, shape) for _ in tokens]
        for plan in EXCHANGE_PLANS:
            exchange = ExchangePlan(plan, topology, EveryRow(tokens))
            rank = topology.expert_rank(0)
            row_bytes = RowBytes(dispatch=2, reply=4)

            def egate(_: int) -> object:
                return ExchangePlan(plan, topology, EveryRow(tokens))  # noqa: B023

            def agate(_: int) -> object:
                return ExchangePlan(plan, topology, RoutedRows.of(routing))  # noqa: B023

            def programs(_: int) -> object:
                return exchange.dispatch(rank), exchange.reply(rank)  # noqa: B023

            def counts(_: int) -> object:
                return closed_form(plan, topology, tokens, row_bytes)  # noqa: B023

            rows.append(
                {
                    "shape/nodes": name,
                    "plan": plan,
                    "egate_us": median_us(egate, rounds),
                    "agate_us": median_us(agate, rounds),
                    "programs_us": median_us(programs, rounds),
                    "closed_form_us": median_us(counts, rounds),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="JSON with machine, commit and all figures")
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    rows = measure(options.rounds)
    print_table(rows)
    if options.json:
        facts = {"benchmark": "exchange_plans", "tokens": TOKENS, "top_k": TOP_K}
        write_json(options.json, {**facts, "machine": machine_facts(), "rows": rows})


if __name__ == "__main__":
    main()
