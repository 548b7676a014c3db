"""How the exchange reacts to the token rate and to other traffic on the link.

    python -m benchmarks.exchange_sensitivity [--json FILE.json] [--figure FILE.png]

Hosts are network namespaces (needs root): two attention instances, and two hosts with two expert
instances each, exchanges back to back without compute. Other TCP connections send from the
attention host to the first expert host as fast as they can; the queue of each link is short, so
that all connections share the link like in a switch. Times are lower quartiles. `tokens_per_s` is
what one layer's exchange carries: tokens over time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.exchange_adaptive import DTYPE, HIDDEN, measure
from benchmarks.support.hosts import HostsUnavailable, Link
from benchmarks.support.report import machine_facts, print_table, write_json
from paper.pictures import picture

BATCHES = (4, 16, 32, 64, 128, 256, 512)
SHAPE = "2A+2E+2E"
QUEUE_BYTES = 500_000


def rows_of(gbps: float, flows: int, budget_s: float) -> list[dict[str, Any]]:
    link = Link(gbps, queue_bytes=QUEUE_BYTES)
    _, times = measure(SHAPE, link, BATCHES, budget_s, flows, repeat="once")
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
    """Of one phase and auto: with other traffic over without, by batch size."""
    lines = []
    quiet = {(row["tokens"], row["variant"]): row for row in rows if row["flows"] == 0}
    for row in rows:
        if row["variant"] in ("1pc", "auto"):
            before = quiet[row["tokens"], row["variant"]]
            over = round(row["us"] / before["us"], 2)
            lines.append({**row, "over_no_flow": over})
    return lines


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    colours = {0: "#3377bb", 1: "#cc8844", 4: "#bb2222"}
    with picture(path, 1, 2, size=(9.6, 3.8), sharey=True) as (figure, grid):
        left, right = grid[0]
        for flows in sorted({row["flows"] for row in rows}):
            for variant, line in (("1pc", "--"), ("auto", "-")):
                found = [row for row in rows if (row["flows"], row["variant"]) == (flows, variant)]
                times = [row["us"] / 1000 for row in found]
                label = f"{variant}, " + (f"{flows} other flow(s)" if flows else "link alone")
                style = {"ls": line, "marker": "o", "ms": 4, "color": colours.get(flows, "#777777")}
                left.plot([row["tokens"] for row in found], times, label=label, **style)
                right.plot([row["tokens_per_s"] / 1000 for row in found], times, **style)
        for axis in (left, right):
            axis.set_yscale("log")
            axis.grid(alpha=0.25)
        left.set_xscale("log", base=2)
        left.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
        left.set_xlabel("tokens of all attention instances")
        left.set_ylabel("one exchange, there and back, ms")
        left.legend(fontsize=8)
        right.set_xlabel("thousand tokens per second through one layer's exchange")
        figure.suptitle(f"{SHAPE}, {rows[0]['gbps']:g} Gb/s links", fontsize=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="JSON with machine, commit and all figures")
    parser.add_argument("--figure", type=Path, help="picture of them (PNG)")
    parser.add_argument("--drawn-from", type=Path, help="draws an earlier result, measures nothing")
    parser.add_argument("--rate-gbps", type=float, default=1.0)
    parser.add_argument("--flows", type=int, nargs="+", default=[0, 1, 4])
    parser.add_argument("--budget", type=float, default=3.0, help="seconds per batch size")
    options = parser.parse_args()
    if 0 not in options.flows:
        parser.error("--flows needs 0, which the others are compared with")
    rows: list[dict[str, Any]] = []
    if options.drawn_from:
        rows = json.loads(options.drawn_from.read_text(encoding="utf-8"))["rows"]
    else:
        for flows in options.flows:
            try:
                rows += rows_of(options.rate_gbps, flows, options.budget)
            except HostsUnavailable as error:
                raise SystemExit(f"benchmarks.exchange_sensitivity: {error}") from None
            print_table([line for line in summary(rows) if line["flows"] == flows])
    if options.json:
        facts = {"benchmark": "exchange_sensitivity", "hidden": HIDDEN, "dtype": DTYPE}
        facts |= {"shape": SHAPE, "queue_bytes": QUEUE_BYTES, "machine": machine_facts()}
        write_json(options.json, {**facts, "summary": summary(rows), "rows": rows})
    if options.figure:
        draw(rows, options.figure)


if __name__ == "__main__":
    main()
