"""Picture of services across hosts, by exchange plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paper.measured.results import BENCHMARKS, Rows, read
from paper.pictures import picture

LINES = {
    "1pc": ("#888888", "s"),
    "2pc-direct": ("#3377bb", "D"),
    "2pc-relay": ("#cc8844", "v"),
    "2pc-sharded": ("#8866aa", "^"),
    "auto": ("#bb2222", "o"),
}
TICKS_MS = (20, 50, 100, 200, 500, 1000)


def over_batch(axes: Any, rows: Rows, value: str) -> None:
    for plan, (colour, marker) in LINES.items():
        found = [row for row in rows if row["plan"] == plan]
        batches, values = [row["batch"] for row in found], [row[value] for row in found]
        axes.plot(batches, values, label=plan, color=colour, marker=marker, markersize=4, lw=1.3)
    ticks = sorted({row["batch"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.25)


def services(path: Path) -> None:
    """A column for each layout and rate: time per token, and the same over that of 1pc."""
    rows = read(BENCHMARKS, "cluster")["rows"]
    cells = list(dict.fromkeys((row["hosts"], row["gbps"]) for row in rows))
    with picture(path, 2, len(cells), size=(3.4 * len(cells), 5.6)) as (_, grid):
        for column, (hosts, gbps) in enumerate(cells):
            chosen = [row for row in rows if (row["hosts"], row["gbps"]) == (hosts, gbps)]
            top, bottom = grid[0][column], grid[1][column]
            over_batch(top, chosen, "tpot_ms")
            top.set_yscale("log")
            top.set_yticks(TICKS_MS, [str(tick) for tick in TICKS_MS])
            top.set_ylim(20, 1000)
            top.minorticks_off()
            top.set_title(f"hosts {hosts.replace(' ', ' | ')}, {gbps:g} Gb/s", fontsize=9)
            over_batch(bottom, chosen, "tpot_vs_1pc")
            bottom.set_ylim(0, 1.6)
            bottom.set_xlabel("requests in the batch")
        grid[0][0].set_ylabel("time per output token, ms")
        grid[1][0].set_ylabel("over that of 1pc, in turns")
        grid[1][0].legend(fontsize=7, loc="lower left")
