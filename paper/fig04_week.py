"""Figure 4: a week whose peak is 7.5 times its mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from janus_moe.planner.simulation.generators import GRID_S, diurnal_profile
from paper.figure import Axes, Comparison, Data

NUMBER = "4"
TITLE = "One week of load over its mean"
BASIS = (
    "Synthetic: the generator of `janus simulate trace synthetic:diurnal`, a daily cycle with "
    "bursts of minutes. The paper's production trace is not public; its peak is this generator's "
    "setting, so the agreement is by construction."
)
PANELS = (1, 1)
DAYS, PEAK, MINUTES = 7, 7.5, 15


def data(seed: int = 0) -> Data:
    profile = diurnal_profile(DAYS * 86_400, PEAK, np.random.default_rng(seed))
    each = profile.reshape(-1, round(60 * MINUTES / GRID_S))
    return {
        "minutes": MINUTES,
        "highest_of_window": each.max(axis=1).tolist(),
        "mean_of_window": each.mean(axis=1).tolist(),
        "peak": float(profile.max() / profile.mean()),
        "peak_of_means": float(each.mean(axis=1).max()),
        "median": float(np.median(profile)),
    }


def plot(data: Data, axes: Sequence[Axes]) -> None:
    (axis,) = axes
    days = [i * data["minutes"] / 1440 for i in range(len(data["mean_of_window"]))]
    axis.plot(days, data["highest_of_window"], lw=0.8, label="highest 30 s of 15 minutes")
    axis.plot(days, data["mean_of_window"], lw=0.8, label="mean of 15 minutes")
    axis.axhline(1, color="k", ls=":", lw=0.8, label="mean of the week")
    axis.set_xlabel("day")
    axis.set_ylabel("load over its mean")
    axis.set_ylim(bottom=0)
    axis.legend()


def compare(data: Data) -> list[Comparison]:
    return [
        Comparison(
            "Peak over mean of one week",
            "7.5",
            f"{data['peak']:.1f} (half minutes), {data['peak_of_means']:.1f} (quarter hours), "
            f"median {data['median']:.2f}",
            "set, not found",
        )
    ]
