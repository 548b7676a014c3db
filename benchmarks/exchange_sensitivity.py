"""How the exchange reacts to the token rate and to other traffic on the link.

    python -m benchmarks.exchange_sensitivity [--json FILE.json] [--flows 0 1 4]

Hosts are network namespaces (needs root): two attention instances, and two hosts with two expert
instances each, exchanges back to back without compute. Other TCP connections send from the
attention host to the first expert host as fast as they can; the queue of each link is short, so
that all connections share the link like in a switch. Times are lower quartiles. `tokens_per_s` is
what one layer's exchange carries: tokens over time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from benchmarks.support.exchange_runs import DTYPE, HIDDEN, compare_plans, layout_of
from benchmarks.support.hosts import Link
from benchmarks.support.program import Result, flag, main
from benchmarks.support.report import print_table

BATCHES = (4, 16, 32, 64, 128, 256, 512)
PROFILE = (2, 8, 32, 128, 512)
SHAPE = "2A+2E+2E"
QUEUE_BYTES = 500_000


def measure(options: argparse.Namespace) -> Result:
    if 0 not in options.flows:
        raise SystemExit("--flows needs 0, which the others are compared with")
    rows = [r for flows in options.flows for r in rows_of(options.gbps, flows, options.budget)]
    lines = summary(rows)
    print_table(lines)
    facts = {"shape": SHAPE, "hidden": HIDDEN, "dtype": DTYPE, "queue_bytes": QUEUE_BYTES}
    return {**facts, "summary": lines, "rows": rows}


def rows_of(gbps: float, flows: int, budget_s: float) -> list[dict[str, Any]]:
    link, layout = Link(gbps, queue_bytes=QUEUE_BYTES), layout_of(SHAPE, max(BATCHES))
    times = compare_plans(layout, link, BATCHES, PROFILE, budget_s, flows, repeat="once")
    return [
        {
            "gbps": gbps,
            "flows": flows,
            "tokens": timed.tokens,
            "variant": timed.variant,
            "us": round(1e6 * timed.typical_s),
            "median_us": round(1e6 * sorted(timed.seconds)[len(timed.seconds) // 2]),
            "tokens_per_s": round(timed.tokens / timed.typical_s),
            "chosen": timed.chosen,
        }
        for timed in times.compared
    ]


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compares one phase and `auto` with other traffic to without, by batch size."""
    lines = []
    quiet = {(row["tokens"], row["variant"]): row for row in rows if row["flows"] == 0}
    for row in rows:
        if row["variant"] in ("1pc", "auto"):
            before = quiet[row["tokens"], row["variant"]]
            over = round(row["us"] / before["us"], 2)
            lines.append({**row, "over_no_flow": over})
    return lines


if __name__ == "__main__":
    main(
        __doc__,
        measure,
        flag("--gbps", type=float, default=1.0, help="rate of every link"),
        flag("--flows", type=int, nargs="+", default=[0, 1, 4], help="other connections"),
        flag("--budget", type=float, default=3.0, help="seconds per batch size"),
    )
