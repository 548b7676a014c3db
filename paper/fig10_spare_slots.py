"""Figure 10: what spare slots are worth, Scaled-DS-2 on 8 and 16 expert instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from janus_moe.planner.search.baselines import BaselineName
from paper.figure import Axes, Comparison, Data
from paper.planning import Question, shape_step, style_of
from paper.routing import SLOTS
from paper.settings import CALIBRATIONS

NUMBER = "10"
TITLE = "Scaled-DS-2: TPOT with 8 and 16 expert instances"
BASIS = (
    "Modelled: equal shapes, 4 attention instances, 27 slots per expert instance for 200 experts; "
    "only exchange, gating and scheduling differ. The paper does not print its shapes and batches."
)
PANELS = (2, 2)
MODEL, NUM_ATTENTION = "scaled-ds-2", 4
INSTANCES, BATCHES = (8, 16), (64, 128, 256, 512)
SYSTEMS: tuple[BaselineName, ...] = ("janus", "megascale-infer", "xdeepserve")


def data(seed: int = 0) -> Data:
    rows = []
    for calibration in CALIBRATIONS:
        for n in INSTANCES:
            for batch in BATCHES:
                question = Question(calibration, batch, 1.0, MODEL)
                for system in SYSTEMS:
                    style = replace(style_of(system), slots=SLOTS, micro_batches=(1,))
                    tpot_s, activated = shape_step(question, style, NUM_ATTENTION, n)
                    rows.append(
                        {
                            "calibration": calibration,
                            "instances": n,
                            "batch": batch,
                            "system": system,
                            "a_max": activated,
                            "tpot_ms": 1e3 * tpot_s,
                        }
                    )
    return {"rows": rows}


def plot(data: Data, axes: Sequence[Axes]) -> None:
    panels = [(c, n) for c in CALIBRATIONS for n in INSTANCES]
    for place, (axis, (calibration, n)) in enumerate(zip(axes, panels, strict=True)):
        for system in SYSTEMS:
            own = [
                row
                for row in data["rows"]
                if (row["calibration"], row["instances"], row["system"]) == (calibration, n, system)
            ]
            axis.plot([r["batch"] for r in own], [r["tpot_ms"] for r in own], "-o", label=system)
        axis.set_title(f"{n} expert instances, calibration: {calibration}", fontsize=9)
        axis.set_xscale("log", base=2)
        axis.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
        axis.set_ylim(bottom=0)
        if place >= 2:
            axis.set_xlabel("tokens in the batch")
        if place % 2 == 0:
            axis.set_ylabel("TPOT, ms")
    axes[0].legend(fontsize=8)


def compare(data: Data) -> list[Comparison]:
    tpot = {
        (r["calibration"], r["instances"], r["batch"], r["system"]): r["tpot_ms"]
        for r in data["rows"]
    }
    rows = []
    for n, paper in zip(INSTANCES, ("little", "41 to 50 %"), strict=True):
        parts = []
        for calibration in CALIBRATIONS:
            for other in SYSTEMS[1:]:
                gains = [
                    1 - tpot[calibration, n, b, "janus"] / tpot[calibration, n, b, other]
                    for b in BATCHES
                ]
                parts.append(f"{min(gains):.0%} to {max(gains):.0%} vs {other} ({calibration})")
        rows.append(
            Comparison(
                f"TPOT lower by, {n} expert instances",
                paper,
                "; ".join(parts),
                "8 instances have 16 spare slots for 200 experts, 16 have 232. What the MoE layer "
                "loses is a smaller share of TPOT where a surplus per layer is added; direct sends "
                "do not contend in our model",
            )
        )
    return rows
