"""Figure 15: what the activation scheduler costs per layer call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from paper.figure import Axes, Comparison, Data

NUMBER = "15"
TITLE = "Activation scheduler, cost per layer call"
BASIS = (
    "Measured on one core of a CPU, not on a GPU: `python -m benchmarks.scheduling`, whose "
    "committed result is read here. The paper's numbers are of its GPU kernel."
)
PANELS = (1, 2)
SOURCE = Path(__file__).parent.parent / "benchmarks" / "results" / "scheduling.json"
SHAPES = ((128, 8, 20), (256, 16, 20))
POLICIES = {"aebs": "AEBS", "exact": "exact"}
PAPER_US = {"small batches": 20.0, "B = 4096": 90.0}


def data(seed: int = 0) -> Data:
    content = json.loads(SOURCE.read_text(encoding="utf-8"))
    rows = [
        row
        for row in content["cost"]
        if (row["experts"], row["instances"], row["slots"]) in SHAPES and row["policy"] in POLICIES
    ]
    return {"processor": content["machine"]["processor"], "top_k": 8, "rows": rows}


def plot(data: Data, axes: Sequence[Axes]) -> None:
    for axis, shape in zip(axes, SHAPES, strict=True):
        for policy, label in POLICIES.items():
            for where, style in (("compiled", "-o"), ("python", ":o")):
                own = [row for row in data["rows"] if _key(row) == (shape, policy, where)]
                axis.plot(
                    [row["batch"] for row in own],
                    [row["min_us"] for row in own],
                    style,
                    ms=4,
                    label=f"{label}, {where}",
                )
        for (name, limit), height in zip(PAPER_US.items(), ("k--", "k:"), strict=True):
            axis.axhline(limit, color="k", ls=height[1:], lw=0.8, label=f"paper (GPU): {name}")
        axis.set_title("{} experts, {} instances x {} slots".format(*shape), fontsize=10)
        axis.set_xscale("log", base=4)
        axis.set_yscale("log")
        sizes = sorted({row["batch"] for row in data["rows"]})
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_xlabel(f"tokens in the batch, top-{data['top_k']}")
    axes[0].set_ylabel("us per layer call (least)")
    axes[1].legend(fontsize=8)


def compare(data: Data) -> list[Comparison]:
    cost = {(*_key(row), row["batch"]): row["min_us"] for row in data["rows"]}
    shape = SHAPES[1]
    why = "one CPU core and compiled code against a GPU kernel; the CPU has no launch to wait for"
    return [
        Comparison(
            f"256 experts, {size}",
            f"below {limit:.0f} us on a GPU",
            f"AEBS {cost[shape, 'aebs', 'compiled', batch]:.1f} us, exact "
            f"{cost[shape, 'exact', 'compiled', batch]:.1f} us on {data['processor'].strip()}",
            why,
        )
        for (size, limit), batch in zip(PAPER_US.items(), (16, 4096), strict=True)
    ]


def _key(row: Data) -> tuple[tuple[int, int, int], str, str]:
    return (row["experts"], row["instances"], row["slots"]), row["policy"], row["where"]
