"""Figure 2: latency of an attention and an MoE layer over the batch, on one GPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paper.figure import Axes, Comparison, Data
from paper.routing import TOP_K, popular
from paper.settings import oracle

NUMBER = "2"
TITLE = "Latency of a layer over the batch, one GPU"
BASIS = (
    "Fitted: laws of H100 kernels, DeepSeek-V2. The MoE layer has 32 of the model's experts on one "
    "GPU, top-6 among them; the number of activated ones is drawn from synthetic routing."
)
PANELS = (1, 2)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CONTEXTS = (512, 2048)
EXPERTS, SPREADS = 32, {"uniform": 0.0, "skewed": 1.5}


def data(seed: int = 0) -> Data:
    one, rows = oracle("fitted"), []
    for batch in BATCHES:
        row: Data = {"batch": batch}
        for context in CONTEXTS:
            seconds = one.attention_layer_s(batch, context)
            row[f"attention_{context}_us"] = 1e6 * float(seconds)
        for name, spread in SPREADS.items():
            sample, rng = popular(spread, EXPERTS), np.random.default_rng((seed, batch))
            active = float(np.mean([len(np.unique(sample(batch, rng))) for _ in range(64)]))
            seconds = one.moe_layer_s(active, batch * TOP_K, batch, EXPERTS)
            row[f"{name}_active"] = active
            row[f"{name}_us"] = 1e6 * float(seconds)
        rows.append(row)
    return {"rows": rows}


def plot(data: Data, axes: Sequence[Axes]) -> None:
    batches = [row["batch"] for row in data["rows"]]
    for context in CONTEXTS:
        values = [row[f"attention_{context}_us"] for row in data["rows"]]
        axes[0].plot(batches, values, marker="o", label=f"context {context}")
    for name in SPREADS:
        axes[1].plot(batches, [r[f"{name}_us"] for r in data["rows"]], marker="o", label=name)
    axes[0].set_title("attention layer")
    axes[1].set_title(f"MoE layer, {EXPERTS} experts")
    axes[0].set_ylabel("us per layer")
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(batches[::2], [str(batch) for batch in batches[::2]])
        axis.set_xlabel("tokens in the batch")
        axis.set_ylim(bottom=0)
        axis.legend()


def compare(data: Data) -> list[Comparison]:
    by_batch = {row["batch"]: row for row in data["rows"]}
    growth = by_batch[256]["attention_512_us"] / by_batch[1]["attention_512_us"]
    later = by_batch[1024]["attention_512_us"] / by_batch[1]["attention_512_us"]
    skewed = [row["skewed_us"] / row["uniform_us"] - 1 for row in data["rows"]]
    return [
        Comparison(
            "Attention, context 512",
            "flat until about B=256, then rising",
            f"{growth:.2f} times B=1 at 256, {later:.2f} times at 1024",
            "matrix products reach the corner of their roofline at about 256 tokens, and "
            "absorbed latent attention multiplies 128 heads with every position",
        ),
        Comparison(
            "MoE layer, uniform against skewed",
            "nearly equal at equal activated experts",
            f"skewed routing takes {min(skewed):+.0%} to {max(skewed):+.0%}",
            "at equal batch skew activates fewer experts; figure 3 has equal numbers of them",
        ),
    ]
