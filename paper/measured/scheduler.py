"""Picture of what the activation scheduler costs."""

from __future__ import annotations

from pathlib import Path

from paper.measured.results import BENCHMARKS, read
from paper.pictures import legend_below, picture

TOP_K = 8
COLOURS = {
    "exact": "#bb2222",
    "aebs": "#3377bb",
    "metro": "#8866aa",
    "random": "#cc8844",
    "token-split": "#888888",
    "token-aware": "#228855",
}


def cost(path: Path) -> None:
    """Time of one layer call over the batch size."""
    content = read(BENCHMARKS, "scheduling")
    rows, processor = content["cost"], content["machine"]["processor"]
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
            axes.set_xlabel(f"tokens in the batch, top-{TOP_K}")
            axes.grid(alpha=0.25)
        grid[0][0].set_ylabel("us per layer call")
        legend_below(figure, grid[0][0], columns=5, fontsize=8)
        figure.suptitle(f"Set + schedule + rewrite, one thread, {processor}", fontsize=10)
