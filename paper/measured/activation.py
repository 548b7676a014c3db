"""Pictures of activated experts of the busiest instance: policies, placements, drift."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paper.measured.results import BENCHMARKS, Rows, read, select
from paper.pictures import legend_below, picture

LINES = {
    "token-split/eplb": ("token-split on eplb", "#888888", "s"),
    "random/janus": ("random on janus", "#cc8844", "v"),
    "metro/janus": ("metro on janus", "#8866aa", "^"),
    "aebs/coactivation": ("aebs on coactivation (paper)", "#3377bb", "D"),
    "exact/janus": ("exact on janus (default)", "#bb2222", "o"),
}
ROUTING = {"recorded": "recorded", "topics": "topics (synthetic)", "zipf": "zipf (synthetic)"}
KINDS = ("uniform", "zipf", "topics", "bursty")
REPLICATION = 1.25
TICKS = (1, 4, 16, 64, 256, 1024, 4096)


def synthetic(path: Path) -> None:
    """Rows of pools, columns of synthetic routing."""
    content, pools = read(BENCHMARKS, "placement"), (8, 16, 32)
    sharing: dict[str, Any] = {"bottom": 0.035, "sharex": True, "sharey": "row"}
    with picture(path, len(pools), len(KINDS), size=(14, 8.6), **sharing) as (figure, grid):
        for row, pool in zip(grid, pools, strict=True):
            for axes, kind in zip(row, KINDS, strict=True):
                panel(axes, content["grid"], kind, pool, f"{kind} (synthetic)")
            row[0].set_ylabel("busiest instance:\nactivated experts")
        finish(figure, grid, f"{shape_of(content)}; synthetic routing")


def recorded(path: Path) -> None:
    """A row for each kind of routing, a column for each pool."""
    content = read(BENCHMARKS, "recorded_routing")
    pools = sorted({row["instances"] for row in content["grid"]})
    sharing: dict[str, Any] = {"bottom": 0.035, "sharex": True, "sharey": "col"}
    with picture(path, len(ROUTING), len(pools), size=(15, 8), **sharing) as (figure, grid):
        for row, (kind, title) in zip(grid, ROUTING.items(), strict=True):
            for axes, pool in zip(row, pools, strict=True):
                panel(axes, content["grid"], kind, pool, title)
            row[0].set_ylabel("busiest instance:\nactivated experts")
        judged = "placements planned on other files than they are judged by"
        finish(figure, grid, f"Bundled model, {shape_of(content)}; {judged}")


def panel(axes: Any, rows: Rows, kind: str, pool: int, title: str) -> None:
    over_batch(axes, select(rows, kind=kind, instances=pool, replication=REPLICATION))
    axes.set_title(f"{title}, {pool} expert instances", fontsize=9)


def finish(figure: Any, grid: Any, note: str) -> None:
    for axes in grid[-1]:
        axes.set_xlabel("tokens in the batch")
    legend_below(figure, grid[0][0], columns=6)
    figure.suptitle(note, fontsize=11)


def shape_of(content: dict[str, Any]) -> str:
    shape = f"{content['experts']} experts, top-{content['top_k']}"
    return f"{shape}, {REPLICATION} replicas per expert"


def over_batch(axes: Any, rows: Rows) -> None:
    sizes = [row["batch"] for row in rows]
    for name, (label, colour, marker) in LINES.items():
        values = [row["a_max"][name] for row in rows]
        axes.plot(sizes, values, label=label, color=colour, marker=marker, markersize=4, lw=1.3)
    even = [row["even"] for row in rows]
    axes.plot(sizes, even, label="even split (bound)", color="black", ls=":", lw=1)
    axes.set_xscale("log", base=4)
    axes.set_xticks(TICKS, [f"{n // 1024}k" if n >= 1024 else str(n) for n in TICKS])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)


def drift(path: Path) -> None:
    """Placements planned on other topics beside ones planned on these."""
    rows = read(BENCHMARKS, "placement")["drift"]
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
