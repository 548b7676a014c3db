"""Picture of a change of topic in a service that rebalances."""

from __future__ import annotations

from pathlib import Path

from paper.measured.results import BENCHMARKS, read
from paper.pictures import legend_below, picture

COLOURS = {"on": "#bb2222", "off": "#888888", "bound": "#3377bb"}


def live_drift(path: Path) -> None:
    """Activated experts over steps, with and without rebalancing."""
    content = read(BENCHMARKS, "live_drift")
    runs, window = content["runs"], content["running_mean_steps"]
    labels = {"on": "rebalancing", "off": "no rebalancing", "bound": "planned on the second topic"}
    with picture(path, size=(9, 4.3), bottom=0.07) as (figure, [[axes]]):
        for name, colour in COLOURS.items():
            for number, run in enumerate(r for r in runs if r["rebalancing"] == name):
                start = window // 10 + 1  # not the means of fewer steps
                label = None if number else labels[name]
                axes.plot(
                    run["steps"][start:], run["running mean"][start:], c=colour, lw=1.2, label=label
                )
        epochs = next(r for r in runs if r["rebalancing"] == "on")
        for number, step in enumerate(epochs["new epochs at steps after the change"]):
            label = None if number else "new epoch, first round"
            axes.axvline(step, color=COLOURS["on"], ls=":", lw=0.7, alpha=0.6, label=label)
        axes.axvline(0, color="black", lw=1, label="first topic, then second topic")
        axes.set_xlabel("steps after the change of topic")
        axes.set_ylabel("activated experts of the busiest\ninstance, mean of 64 steps")
        title = "Synthetic model, 2 attention and 4 expert instances, 80 slots for 64 experts"
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
        legend_below(figure, axes, columns=5, fontsize=8)
