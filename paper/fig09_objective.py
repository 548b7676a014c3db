"""Figure 9: which shape the planner takes as the objective relaxes, and its throughput per GPU."""

from __future__ import annotations

from collections.abc import Sequence

from paper.figure import Axes, Comparison, Data
from paper.planning import Question, ask, described
from paper.settings import CALIBRATIONS, CalibrationName

NUMBER = "9"
TITLE = "Chosen shape and tokens per second and GPU over the TPOT objective (DeepSeek-V2)"
BASIS = (
    "Modelled: the planner's search over all shapes of up to 32 H100. Under `paper` four of the "
    "throughputs were fitted (see above), the choice of shapes was not; under `fitted` nothing was."
)
PANELS = (1, 2)
BATCHES = (64, 256, 512)
OFFSETS = {64: -12, 256: -12, 512: 6}  # of labels, in points
OBJECTIVES_MS: dict[CalibrationName, tuple[int, ...]] = {
    "fitted": (25, 30, 35, 40, 45, 50, 60, 75, 100),
    "paper": (75, 90, 100, 110, 125, 150, 175, 200),
}


def data(seed: int = 0) -> Data:
    return {
        "rows": [
            {
                "calibration": calibration,
                "batch": batch,
                "objective_ms": ms,
                **described(ask("janus", Question(calibration, batch, ms / 1e3))),
            }
            for calibration in CALIBRATIONS
            for batch in BATCHES
            for ms in OBJECTIVES_MS[calibration]
        ]
    }


def plot(data: Data, axes: Sequence[Axes]) -> None:
    for axis, calibration in zip(axes, CALIBRATIONS, strict=True):
        objectives = OBJECTIVES_MS[calibration]
        for batch in BATCHES:
            own = [
                row
                for row in data["rows"]
                if (row["calibration"], row["batch"]) == (calibration, batch) and row["shape"]
            ]
            places = [objectives.index(row["objective_ms"]) for row in own]
            axis.plot(places, [r["tpg"] for r in own], "-o", ms=4, label=f"B = {batch}")
            last = None
            for row in own:
                if row["shape"] != last:
                    place = (objectives.index(row["objective_ms"]), row["tpg"])
                    axis.annotate(
                        row["shape"],
                        place,
                        (-4, OFFSETS[batch]),
                        textcoords="offset points",
                        fontsize=7,
                    )
                last = row["shape"]
        axis.set_title(f"calibration: {calibration}", fontsize=10)
        axis.set_xlabel("TPOT objective, ms")
        axis.set_xticks(range(len(objectives)), [str(ms) for ms in objectives])
        axis.set_ylim(0, axis.get_ylim()[1] * 1.12)
        axis.set_xlim(right=len(objectives) - 0.4)
        axis.legend(fontsize=8, loc="upper left")
    axes[0].set_ylabel("tokens per second and GPU")


def compare(data: Data) -> list[Comparison]:
    found = {(r["calibration"], r["batch"], r["objective_ms"]): r for r in data["rows"]}

    def line(batch: int, calibration: CalibrationName) -> str:
        parts: list[str] = []
        last = ""
        for ms in OBJECTIVES_MS[calibration]:
            row = found[calibration, batch, ms]
            text = f"{row['shape']} {row['tpg']:.0f}" if row["shape"] else "infeasible"
            if text != last:
                parts.append(f"{ms} ms: {text}")
            last = text
        return "; ".join(parts)

    paper = {
        64: "1A6E, about 99",
        256: "5A10E, about 170, to 2A6E, about 240",
        512: "4A6E, about 340; strictest objective infeasible",
    }
    fitted = (
        "without the surplus per token, one attention instance is enough for more tokens; the "
        "paper's shapes follow from how long its attention side takes per token"
    )
    rows = []
    for batch in BATCHES:
        rows.append(
            Comparison(
                f"B={batch}, `paper` calibration",
                paper[batch],
                line(batch, "paper"),
                "the paper does not print its objectives for these; neighbours differ by one shape",
            )
        )
        rows.append(Comparison(f"B={batch}, `fitted`", paper[batch], line(batch, "fitted"), fitted))
    return rows
