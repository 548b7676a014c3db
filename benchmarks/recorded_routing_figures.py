"""Draws what `benchmarks.recorded_routing` measured (needs matplotlib).

python -m benchmarks.recorded_routing_figures [--json FILE] [--directory docs/figures]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper.measured.activation import over_batch, select
from paper.measured.scheduler import cost_figure
from paper.pictures import legend_below, picture

ROWS = {"recorded": "recorded", "topics": "topics (synthetic)", "zipf": "zipf (synthetic)"}
REPLICATION = 1.25
TICKS = (1, 4, 16, 64, 256, 1024, 4096)


def a_max_figure(rows: Sequence[dict[str, Any]], path: Path, note: str) -> None:
    """Paper, figure 13: a row per kind of routing, a column per pool."""
    pools = sorted({row["instances"] for row in rows})
    sharing: dict[str, Any] = {"bottom": 0.035, "sharex": True, "sharey": "col"}
    with picture(path, len(ROWS), len(pools), size=(15, 8), **sharing) as (figure, grid):
        for line, (kind, title) in zip(grid, ROWS.items(), strict=True):
            for axes, pool in zip(line, pools, strict=True):
                over_batch(axes, select(rows, kind=kind, instances=pool, replication=REPLICATION))
                axes.set_title(f"{title}, {pool} expert instances", fontsize=9)
            line[0].set_ylabel("busiest instance:\nactivated experts")
        for axes in grid[-1]:
            axes.set_xlabel("tokens in the batch")
            axes.set_xticks(TICKS, [f"{n // 1024}k" if n >= 1024 else str(n) for n in TICKS])
        legend_below(figure, grid[0][0], columns=6)
        figure.suptitle(note, fontsize=11)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path("benchmarks/results/recorded_routing.json")
    parser.add_argument("--json", type=Path, default=default)
    parser.add_argument("--directory", type=Path, default=Path("docs/figures"))
    options = parser.parse_args()
    content = json.loads(options.json.read_text(encoding="utf-8"))
    note = (
        f"Bundled model, {content['experts']} experts, top-{content['top_k']}, {REPLICATION} "
        "replicas per expert; placements planned on other files than they are judged by"
    )
    a_max_figure(content["grid"], options.directory / "a_max_recorded.png", note)
    path = options.directory / "scheduler_cost_recorded.png"
    cost_figure(content["cost"], path, content["machine"]["processor"], content["top_k"])


if __name__ == "__main__":
    main()
