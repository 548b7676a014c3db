"""Draws what `benchmarks.placement` measured (needs matplotlib).

python -m paper.measured.activation [--json FILE] [--directory docs/figures]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper.pictures import legend_below, picture

LINES = {
    "token-split/eplb": ("token-split on eplb", "#888888", "s"),
    "random/janus": ("random on janus", "#cc8844", "v"),
    "metro/janus": ("metro on janus", "#8866aa", "^"),
    "aebs/coactivation": ("aebs on coactivation (paper)", "#3377bb", "D"),
    "exact/janus": ("exact on janus (default)", "#bb2222", "o"),
}


def select(rows: Sequence[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def over_batch(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    sizes = [row["batch"] for row in rows]
    for name, (label, colour, marker) in LINES.items():
        values = [row["a_max"][name] for row in rows]
        axes.plot(sizes, values, label=label, color=colour, marker=marker, markersize=4, lw=1.3)
    even = [row["even"] for row in rows]
    axes.plot(sizes, even, label="even split (bound)", color="black", ls=":", lw=1)
    axes.set_xscale("log", base=4)
    axes.set_xticks([1, 4, 16, 64, 256, 1024, 4096], ["1", "4", "16", "64", "256", "1024", "4096"])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)


def a_max_figure(rows: Sequence[dict[str, Any]], path: Path, note: str) -> None:
    """Paper, figure 13: rows of pools, columns of synthetic routing."""
    kinds, pools = ("uniform", "zipf", "topics", "bursty"), (8, 16, 32)
    sharing: dict[str, Any] = {"bottom": 0.035, "sharex": True, "sharey": "row"}
    with picture(path, len(pools), len(kinds), size=(14, 8.6), **sharing) as (figure, grid):
        for row, pool in enumerate(pools):
            for column, kind in enumerate(kinds):
                axes = grid[row][column]
                over_batch(axes, select(rows, kind=kind, instances=pool, replication=1.25))
                axes.set_title(f"{kind} (synthetic), {pool} expert instances", fontsize=9)
            grid[row][0].set_ylabel("busiest instance:\nactivated experts")
        for axes in grid[-1]:
            axes.set_xlabel("tokens in the batch")
        legend_below(figure, grid[0][0], columns=6)
        figure.suptitle(note, fontsize=11)


def drift_figure(rows: Sequence[dict[str, Any]], path: Path) -> None:
    methods, colours = ("janus", "coactivation", "eplb"), ("#bb2222", "#3377bb", "#888888")
    with picture(path, size=(8, 3.8)) as (_, [[axes]]):
        for index, row in enumerate(rows):
            for offset, (method, colour) in enumerate(zip(methods, colours, strict=True)):
                for when, hatch, shift in (("before", "", 0.0), ("after", "//", 0.12)):
                    topics = "on other topics" if when == "before" else "on these"
                    axes.bar(
                        index + 0.26 * offset + shift,
                        100 * (row[f"{method}, planned {when}"] / row["janus, planned after"] - 1),
                        width=0.12,
                        color=colour,
                        alpha=1.0 if when == "before" else 0.55,
                        hatch=hatch,
                        label=f"{method}, planned {topics}" if index == 0 else None,
                    )
        names = [f"{row['instances']} instances\nx{row['replication']}" for row in rows]
        axes.set_xticks([index + 0.32 for index in range(len(rows))], names)
        axes.set_ylabel("activated experts of the busiest\ninstance, % over janus planned on these")
        axes.set_title(
            "Drift: 8 synthetic topics planned on, 8 others tested; exact, B = 64", fontsize=9
        )
        axes.set_ylim(top=16)
        axes.legend(fontsize=7, ncol=3, loc="upper center")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/placement.json"))
    parser.add_argument("--directory", type=Path, default=Path("docs/figures"))
    options = parser.parse_args()
    content = json.loads(options.json.read_text(encoding="utf-8"))
    note = (
        f"{content['experts']} experts, top-{content['top_k']}, 1.25 replicas per expert; "
        "synthetic routing"
    )
    a_max_figure(content["grid"], options.directory / "a_max.png", note)
    drift_figure(content["drift"], options.directory / "drift.png")


if __name__ == "__main__":
    main()
