"""Figure 16: TPOT over the space of shapes at three batches, with the planner's choice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paper.figure import Axes, Comparison, Data
from paper.planning import Question, ask, described, tpot_grid
from paper.settings import CALIBRATIONS

NUMBER = "16"
TITLE = "TPOT of every shape (ms); the chosen one within 150 ms has a box"
BASIS = "Modelled: all shapes of 1 to 8 attention and 6 to 16 expert instances, as for figure 9."
PANELS = (2, 3)
BATCHES, OBJECTIVE_S = (64, 256, 512), 0.15
ATTENTION, EXPERTS = tuple(range(1, 9)), tuple(range(6, 17))
PAPER = {64: "1A6E", 256: "2A6E", 512: "4A6E"}
OBJECTIVES_S = (0.1, 0.125, 0.15, 0.175, 0.2)


def data(seed: int = 0) -> Data:
    points = []
    for calibration in CALIBRATIONS:
        for batch in BATCHES:
            question = Question(calibration, batch, OBJECTIVE_S)
            chosen = described(ask("janus", question))
            points.append(
                {
                    "calibration": calibration,
                    "batch": batch,
                    "tpot_ms": (1e3 * tpot_grid(question, ATTENTION, EXPERTS)).tolist(),
                    "chosen": chosen["shape"],
                    "chosen_by_objective_ms": {
                        str(round(1e3 * s)): described(
                            ask("janus", Question(calibration, batch, s))
                        )["shape"]
                        for s in OBJECTIVES_S
                    },
                }
            )
    return {"attention": list(ATTENTION), "experts": list(EXPERTS), "points": points}


def plot(data: Data, axes: Sequence[Axes]) -> None:
    for place, point in enumerate(data["points"]):
        axis, values = axes[place], np.array(point["tpot_ms"])
        axis.grid(visible=False)
        axis.imshow(values, aspect="auto", origin="lower", cmap="viridis_r")
        middle = (values.min() + values.max()) / 2
        for (i, j), value in np.ndenumerate(values):
            colour = "white" if value > middle else "black"
            axis.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
        if point["chosen"]:
            n_a, n_e = (int(n) for n in point["chosen"].rstrip("E").split("A"))
            x, y = n_e - EXPERTS[0] - 0.5, n_a - ATTENTION[0] - 0.5
            axis.plot([x, x + 1, x + 1, x, x], [y, y, y + 1, y + 1, y], color="red", lw=2)
        axis.set_xticks(range(len(EXPERTS)), [str(n) for n in EXPERTS], fontsize=8)
        axis.set_yticks(range(len(ATTENTION)), [str(n) for n in ATTENTION], fontsize=8)
        axis.set_title(
            f"{point['calibration']}, B = {point['batch']}: {point['chosen']}", fontsize=9
        )
        if place >= 3:
            axis.set_xlabel("expert instances")
        if place % 3 == 0:
            axis.set_ylabel("attention instances")


def compare(data: Data) -> list[Comparison]:
    rows = []
    for point in data["points"]:
        picks = point["chosen_by_objective_ms"]
        agree = [ms for ms, shape in picks.items() if shape == PAPER[point["batch"]]]
        reason = ""
        if not agree and point["calibration"] == "fitted":
            reason = (
                "by kernels and links alone every objective is met by the smallest pools; see "
                "figure 9"
            )
        rows.append(
            Comparison(
                f"Choice at B={point['batch']}, `{point['calibration']}`",
                PAPER[point["batch"]],
                "; ".join(f"{ms} ms: {shape}" for ms, shape in picks.items()),
                reason,
            )
        )
    return rows
