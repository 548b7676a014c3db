"""Draws what `benchmarks.scheduling` measured (needs matplotlib).

python -m paper.measured.scheduler [--json FILE] [--directory docs/figures]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper.pictures import legend_below, picture

COLOURS = {
    "exact": "#bb2222",
    "aebs": "#3377bb",
    "metro": "#8866aa",
    "random": "#cc8844",
    "token-split": "#888888",
    "token-aware": "#228855",
}


def cost_figure(rows: Sequence[dict[str, Any]], path: Path, processor: str, top_k: int = 8) -> None:
    """Paper, figure 15: time of one layer call over the batch size."""
    shapes = list(dict.fromkeys((r["experts"], r["instances"], r["slots"]) for r in rows))
    size = (4.0 * len(shapes), 3.9)
    with picture(path, 1, len(shapes), size=size, bottom=0.11, sharey=True) as (figure, grid):
        for axes, shape in zip(grid[0], shapes, strict=True):
            own = [r for r in rows if (r["experts"], r["instances"], r["slots"]) == shape]
            for policy, colour in COLOURS.items():
                for where, style in (("compiled", "-"), ("python", ":")):
                    line = [r for r in own if (r["policy"], r["where"]) == (policy, where)]
                    if line:
                        axes.plot(
                            [r["batch"] for r in line],
                            [r["min_us"] for r in line],
                            style,
                            color=colour,
                            marker="o",
                            markersize=3,
                            lw=1.2,
                            label=f"{policy}, {where}",
                        )
            axes.set_title("{} experts, {} instances x {} slots".format(*shape), fontsize=9)
            axes.set_xscale("log", base=4)
            axes.set_yscale("log")
            sizes = sorted({r["batch"] for r in own})
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.set_xlabel(f"tokens in the batch, top-{top_k}")
            axes.grid(alpha=0.25)
        grid[0][0].set_ylabel("us per layer call")
        legend_below(figure, grid[0][0], columns=5, fontsize=8)
        figure.suptitle(f"Set + schedule + rewrite, one thread, {processor}", fontsize=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/scheduling.json"))
    parser.add_argument("--directory", type=Path, default=Path("docs/figures"))
    options = parser.parse_args()
    content = json.loads(options.json.read_text(encoding="utf-8"))
    path = options.directory / "scheduler_cost.png"
    cost_figure(content["cost"], path, content["machine"]["processor"])


if __name__ == "__main__":
    main()
