"""Figure 1: what more instances do to the latency of an attention and an MoE layer."""

from __future__ import annotations

from collections.abc import Sequence

from paper.figure import Axes, Comparison, Data
from paper.routing import NUM_EXPERTS, TOP_K, Amax, like_paper
from paper.settings import oracle

NUMBER = "1"
TITLE = "Latency of a layer over its parallelism, one instance = 1"
BASIS = (
    "Fitted: laws of H100 kernels, DeepSeek-V2, context 512. Attention is replicated and splits "
    "the batch; experts are split, their activated number is Monte Carlo on synthetic routing, "
    "one slot per expert. No exchange."
)
PANELS = (1, 2)
BATCHES, INSTANCES, CONTEXT = (16, 64, 512), (1, 2, 4, 8, 16, 32), 512


def data(seed: int = 0) -> Data:
    one, amax = oracle("fitted"), Amax(like_paper(), seed=seed)
    rows = []
    for batch in BATCHES:
        for n in INSTANCES:
            activated = amax.of(n, batch, "exact", "janus", -(-NUM_EXPERTS // n))
            experts = one.moe_layer_s(activated, batch * TOP_K / n, batch, NUM_EXPERTS / n)
            rows.append(
                {
                    "batch": batch,
                    "instances": n,
                    "attention_us": 1e6 * float(one.attention_layer_s(batch / n, CONTEXT)),
                    "a_max": activated,
                    "moe_us": 1e6 * float(experts),
                }
            )
    return {"rows": rows}


def plot(data: Data, axes: Sequence[Axes]) -> None:
    for axis, part in zip(axes, ("attention", "moe"), strict=True):
        for batch in BATCHES:
            own = [row for row in data["rows"] if row["batch"] == batch]
            values = [row[f"{part}_us"] / own[0][f"{part}_us"] for row in own]
            axis.plot([row["instances"] for row in own], values, marker="o", label=f"B = {batch}")
        axis.set_title({"attention": "attention layer", "moe": "MoE layer"}[part])
        axis.set_xscale("log", base=2)
        axis.set_xticks(INSTANCES, [str(n) for n in INSTANCES])
        axis.set_xlabel("instances")
        axis.set_ylim(0, 1.1)
        axis.legend()
    axes[0].set_ylabel("latency, one instance = 1")


def compare(data: Data) -> list[Comparison]:
    def share(part: str, batch: int, n: int) -> float:
        row = {(r["batch"], r["instances"]): r[f"{part}_us"] for r in data["rows"]}
        return float(row[batch, n] / row[batch, 1])

    return [
        Comparison(
            "More attention instances",
            "help only at large B",
            f"8 instances: {share('attention', 16, 8):.2f} of the latency at B=16, "
            f"{share('attention', 64, 8):.2f} at B=64, {share('attention', 512, 8):.2f} at B=512",
        ),
        Comparison(
            "More expert instances",
            "help throughout",
            f"8 instances: {share('moe', 16, 8):.2f} at B=16, {share('moe', 512, 8):.2f} at B=512",
        ),
    ]
