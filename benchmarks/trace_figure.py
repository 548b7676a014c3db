"""A Chrome trace of `janus trace` as a picture, one row per instance and message lane.

janus trace --attention-instances 2 --expert-instances 2 --transport gloo --out trace.json
python -m benchmarks.trace_figure trace.json docs/figures/trace.png [--milliseconds 2]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from paper.pictures import picture

COLOURS = {
    "attention": "#4477aa",
    "shared expert": "#66ccee",
    "dispatch": "#ccbb44",
    "combine": "#ddddcc",
    "announce": "#bbbbbb",
    "sample": "#228833",
    "wait": "#eeeeee",
    "route": "#aa3377",
    "schedule": "#ee6677",
    "experts": "#994455",
    "reply": "#ccbb44",
}
MESSAGE = "#333333"


def draw(trace: dict[str, Any], path: Path, start_us: float, length_us: float) -> None:
    from matplotlib.patches import Patch

    names = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in trace["traceEvents"]
        if event["name"] == "thread_name"
    }
    processes = {
        event["pid"]: event["args"]["name"]
        for event in trace["traceEvents"]
        if event["name"] == "process_name"
    }
    rows = {key: number for number, key in enumerate(sorted(names))}
    with picture(path, size=(13, 1 + 0.32 * len(rows))) as (_, [[axes]]):
        used = []
        for event in trace["traceEvents"]:
            if event["ph"] != "X":
                continue
            begin, end = event["ts"] - start_us, event["ts"] + event["dur"] - start_us
            if end < 0 or begin > length_us:
                continue
            row = rows[event["pid"], event["tid"]]
            is_work = event["cat"] == "work"
            colour = COLOURS.get(event["name"], "#bbbbbb") if is_work else MESSAGE
            if is_work and event["name"] not in used:
                used.append(event["name"])
            height = 0.8 if is_work else 0.4
            axes.barh(row, end - begin, left=begin, height=height, color=colour, linewidth=0)
        labels = [processes[key[0]] if names[key] == "work" else names[key] for key in sorted(rows)]
        axes.set_yticks(range(len(rows)), labels, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, length_us)
        axes.set_xlabel("microseconds")
        handles = [Patch(color=COLOURS.get(name, "#bbbbbb"), label=name) for name in used]
        handles.append(Patch(color=MESSAGE, label="message"))
        axes.legend(
            handles=handles,
            ncols=len(handles),
            fontsize=8,
            loc="lower left",
            bbox_to_anchor=(0, 1),
        )
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("trace", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--start-us", type=float, default=0.0)
    parser.add_argument("--length-us", type=float, default=5000.0)
    options = parser.parse_args()
    trace = json.loads(options.trace.read_text())
    draw(trace, options.picture, options.start_us, options.length_us)


if __name__ == "__main__":
    main()
