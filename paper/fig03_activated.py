"""Figure 3: an MoE layer costs what it must read, its activated experts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paper.figure import Axes, Comparison, Data
from paper.routing import TOP_K
from paper.settings import oracle

NUMBER = "3"
TITLE = "MoE layer over activated experts, 32 experts on one GPU, B = 64"
BASIS = (
    "Fitted: laws of H100 kernels, DeepSeek-V2's experts. The laws know activated experts, "
    "arriving rows and (token, k) pairs, not how pairs are spread over the experts: that skew "
    "costs nothing is assumed here, not shown."
)
PANELS = (1, 1)
BATCH, EXPERTS = 64, 32
BATCHES = (16, 64, 256)


def data(seed: int = 0) -> Data:
    one = oracle("fitted")
    activated = np.arange(1, EXPERTS + 1)
    lines = {
        str(batch): (1e6 * one.moe_layer_s(activated, batch * TOP_K, batch, EXPERTS)).tolist()
        for batch in BATCHES
    }
    slope, constant = np.polyfit(activated, lines[str(BATCH)], 1)
    error = np.abs(slope * activated + constant - lines[str(BATCH)]) / lines[str(BATCH)]
    return {
        "activated": activated.tolist(),
        "us_by_batch": lines,
        "us_per_expert": float(slope),
        "constant_us": float(constant),
        "largest_error": float(error.max()),
        "read_at_data_sheet_us": 1e6
        * one.model.expert_bytes
        / one.expert_side.device.memory_bytes_per_s,
    }


def plot(data: Data, axes: Sequence[Axes]) -> None:
    (axis,) = axes
    for batch, values in data["us_by_batch"].items():
        axis.plot(data["activated"], values, label=f"B = {batch}")
    line = [data["us_per_expert"] * n + data["constant_us"] for n in data["activated"]]
    axis.plot(data["activated"], line, "k:", label=f"line through B = {BATCH}")
    axis.set_xlabel("activated experts")
    axis.set_ylabel("us per layer")
    axis.set_ylim(bottom=0)
    axis.legend()


def compare(data: Data) -> list[Comparison]:
    return [
        Comparison(
            "Latency over activated experts",
            "linear, with a constant floor",
            f"{data['us_per_expert']:.1f} us per expert + {data['constant_us']:.0f} us, within "
            f"{data['largest_error']:.0%} of a line; reading an expert at the data sheet's "
            f"bandwidth takes {data['read_at_data_sheet_us']:.1f} us",
        ),
        Comparison(
            "Uniform against skewed tokens",
            "nearly equal",
            "equal by assumption",
            "the law does not know how tokens are spread; see the basis",
        ),
    ]
