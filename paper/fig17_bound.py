"""Figure 17: the closed-form bound of a_max beside Monte Carlo and the paper's own values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from janus_moe.policy.estimate import closed_form, paper_bound
from paper.figure import Axes, Comparison, Data
from paper.routing import FITTED_TO, NUM_EXPERTS, PAPER_SPREAD, SLOTS, Amax, like_paper

NUMBER = "17"
TITLE = "Bound of a_max against Monte Carlo"
BASIS = (
    f"Modelled on synthetic routing. Its spread of popularity ({PAPER_SPREAD}) is fitted to the "
    "paper's four values for 6 instances; the values for 12 and 16 are predictions. AEBS on the "
    "paper's placement."
)
PANELS = (1, 4)
INSTANCES, BATCHES = (6, 8, 12, 16), (1, 4, 16, 64, 256, 512)
PAPER = {(6, batch): value for batch, value in FITTED_TO.items()} | {
    (12, 16): 5.84, (12, 64): 10.82, (16, 256): 10.78, (16, 512): 10.95,
}  # fmt: skip


def data(seed: int = 0) -> Data:
    amax = Amax(like_paper(), seed=seed)
    rng = np.random.default_rng(seed)
    rows = []
    for batch in BATCHES:
        active = np.zeros(NUM_EXPERTS)
        for _ in range(256):
            active[np.unique(amax.sample(batch, rng))] += 1 / 256
        for n in INSTANCES:
            layout = amax.layout("coactivation", n, SLOTS)
            rows.append(
                {
                    "instances": n,
                    "batch": batch,
                    "monte_carlo": amax.of(n, batch, "aebs", "coactivation"),
                    "one_slot_per_expert": amax.of(
                        n, batch, "aebs", "coactivation", -(-NUM_EXPERTS // n)
                    ),
                    "paper_bound": paper_bound(layout, np.minimum(active, 1.0)),
                    "closed_form": closed_form(layout, np.minimum(active, 1.0)),
                    "paper": PAPER.get((n, batch)),
                }
            )
    return {"spread": PAPER_SPREAD, "slots": SLOTS, "rows": rows}


LINES = {
    "paper_bound": "the paper's bound",
    "monte_carlo": "Monte Carlo, 27 slots",
    "one_slot_per_expert": "Monte Carlo, no spare slots",
    "closed_form": "our closed form (exact policy)",
}


def plot(data: Data, axes: Sequence[Axes]) -> None:
    for axis, n in zip(axes, INSTANCES, strict=True):
        own = [row for row in data["rows"] if row["instances"] == n]
        batches = [row["batch"] for row in own]
        for (key, label), style in zip(LINES.items(), ("--", "-o", "-", ":"), strict=True):
            axis.plot(batches, [row[key] for row in own], style, ms=4, label=label)
        printed = [(row["batch"], row["paper"]) for row in own if row["paper"]]
        if printed:
            axis.plot(*zip(*printed, strict=True), "k*", ms=9)
        axis.set_title(f"{n} expert instances")
        axis.set_xscale("log", base=2)
        axis.set_xticks(batches, [str(batch) for batch in batches])
        axis.set_xlabel("tokens in the batch")
        axis.set_ylim(0, 30)
    axes[0].set_ylabel("activated experts, busiest instance")
    axes[1].plot([], [], "k*", ms=9, label="printed in the paper")
    axes[1].legend(fontsize=8, loc="upper left")


def compare(data: Data) -> list[Comparison]:
    found = {(row["instances"], row["batch"]): row for row in data["rows"]}
    rows = []
    for (n, batch), paper in PAPER.items():
        row = found[n, batch]
        fitted = "fitted to this row" if n == 6 else ""
        reason = fitted or (
            "the paper's values are near those of our routing without spare slots; either its "
            "placements used few of them, or its routing is less even within a batch"
        )
        rows.append(
            Comparison(
                f"a_max, {n} instances, B={batch}",
                f"{paper:.2f}",
                f"{row['monte_carlo']:.2f} (no spare slots {row['one_slot_per_expert']:.2f})",
                reason,
            )
        )
    above = sum(row["paper_bound"] >= row["monte_carlo"] for row in data["rows"])
    over = [row["paper_bound"] / row["monte_carlo"] - 1 for row in data["rows"]]
    rows.append(
        Comparison(
            "The bound is conservative",
            "in all cells",
            f"in {above} of {len(data['rows'])} cells, {min(over):.0%} to {max(over):.0%} above",
        )
    )
    return rows
