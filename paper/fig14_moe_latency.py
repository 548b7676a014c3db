"""Figure 14: what the activated experts of figure 13 mean for an MoE layer's latency."""

from __future__ import annotations

from collections.abc import Sequence

from paper import fig13_activation as activation
from paper.figure import Axes, Comparison, Data
from paper.routing import TOP_K
from paper.settings import oracle

NUMBER = "14"
TITLE = "Latency of an MoE layer under each policy and placement"
BASIS = (
    "Fitted and modelled: the a_max of figure 13 through the fitted law of an MoE layer on H100. "
    "Gate, scheduler and exchange are not in it."
)
PANELS = (2, 3)


def data(seed: int = 0) -> Data:
    one = oracle("fitted")
    rows = []
    for row in activation.data(seed)["rows"]:
        batch, n = row["batch"], row["instances"]
        seconds = one.moe_layer_s(row["a_max"], batch * TOP_K / n, batch, row["slots"])
        rows.append({**row, "moe_us": 1e6 * float(seconds)})
    return {"rows": rows}


def plot(data: Data, axes: Sequence[Axes]) -> None:
    activation.draw(data, axes, "moe_us", "us per layer")


def compare(data: Data) -> list[Comparison]:
    first = next(iter(activation.ROUTERS))
    rows = []
    for n in activation.INSTANCES:
        aebs = activation.ratio(data, first, n, "AEBS (paper)", "EPLB", "moe_us")
        ours = activation.ratio(data, first, n, "exact on janus", "EPLB", "moe_us")
        rows.append(
            Comparison(
                f"MoE latency below EPLB, {n} instances",
                "below at every batch",
                f"AEBS {1 - max(aebs):.0%} to {1 - min(aebs):.0%} below, `exact` "
                f"{1 - max(ours):.0%} to {1 - min(ours):.0%}",
            )
        )
    few = [activation.mean_over_batches(data, first, n, "EPLB", "moe_us") for n in (8, 16)]
    rows.append(
        Comparison(
            "EPLB from 8 to 16 instances",
            "gains nothing",
            f"{few[0]:.0f} us to {few[1]:.0f} us, mean over batches",
            "as for figure 13",
        )
    )
    return rows
