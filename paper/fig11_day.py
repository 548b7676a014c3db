"""Figure 11: GPUs over a bursty day, decided every 15 minutes, and GPU hours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from janus_moe.planner.latency.arrays import Array
from janus_moe.planner.search.answers import Deployment
from janus_moe.planner.search.baselines import BaselineName
from janus_moe.planner.search.problem import PoolStyle, Problem, Saturate
from janus_moe.planner.search.search import PoolSearch
from janus_moe.planner.simulation.generators import GRID_S, diurnal_profile
from paper.figure import Axes, Comparison, Data
from paper.planning import SYSTEMS, Question, described, planner, problem
from paper.settings import (
    CALIBRATIONS,
    OUTPUT,
    CalibrationName,
    idle_surplus_oracle,
    undivided_oracle,
)

NUMBER = "11"
TITLE = "GPUs over 24 hours, a decision every 15 minutes (DeepSeek-V2)"
BASIS = (
    "Synthetic load (figure 4's generator, one day), modelled time. Its scale is set so that the "
    "busiest quarter of an hour is what Janus serves with 56 GPUs, the paper's most. Each decision "
    "knows the mean rate of its own interval; changes cost nothing, here as in the paper."
)
PANELS = (1, 2)
MINUTES, PEAK, MOST_GPUS, MAX_GPUS = 15, 7.5, 56, 64
OBJECTIVE_S: dict[CalibrationName, float] = {"fitted": 0.05, "paper": 0.15}
PAPER = {"sglang": 39, "sglang-dp": 39, "megascale-infer": 16}
STYLES = ("-", "-", "-.", "--", ":")


def data(seed: int = 0) -> Data:
    load = load_of_day(seed)
    return {"load_over_mean": load.tolist(), "days": [day(c, load, SYSTEMS) for c in CALIBRATIONS]}


def load_of_day(seed: int) -> Array:
    """[96] mean load of each quarter of an hour over the day's mean."""
    profile = diurnal_profile(86_400, PEAK, np.random.default_rng(seed))
    return np.asarray(profile.reshape(-1, round(60 * MINUTES / GRID_S)).mean(axis=1))


def day(calibration: CalibrationName, load: Array, systems: Sequence[BaselineName]) -> Data:
    asked = problem(Question(calibration, 64, OBJECTIVE_S[calibration], gpus=MAX_GPUS))
    style = planner("janus", asked).config.style
    assert isinstance(style, PoolStyle)
    saturated = replace(asked, demand=Saturate(), max_gpus=MOST_GPUS, max_copies=1)
    (most,) = PoolSearch(saturated, style).largest(MOST_GPUS)
    rates = load / load.max() * most.tokens_per_s
    idle = None
    if calibration == "paper" and "megascale-infer" in systems:
        waiting = replace(asked, oracle=idle_surplus_oracle())
        idle = decisions("megascale-infer", waiting, rates)
    undivided = None
    if calibration == "paper" and "sglang" in systems:
        undivided = decisions("sglang", replace(asked, oracle=undivided_oracle()), rates)
    return {
        "calibration": calibration,
        "objective_ms": 1e3 * OBJECTIVE_S[calibration],
        "peak_deployment": described(most),
        "mean_requests_per_s": float(rates.mean()) / OUTPUT,
        "peak_requests_per_s": float(rates.max()) / OUTPUT,
        "systems": {system: decisions(system, asked, rates) for system in systems},
        "megascale_if_surplus_is_idle": idle,
        "sglang_if_surplus_is_undivided": undivided,
    }


def decisions(system: BaselineName, asked: Problem, rates: Array) -> Data:
    """GPUs per interval; where no deployment meets the demand, all GPUs, and the interval counts as
    missed. Rates are rounded up to 1 %."""
    one = planner(system, asked)
    known: dict[int, Deployment | None] = {}
    shapes, gpus, missed = [], [], 0
    for rate in rates.tolist():
        level = int(np.ceil(np.log(rate) / np.log(1.01)))
        if level not in known:
            answer = one.decide(min(1.01**level, float(rates.max())))
            known[level] = answer if isinstance(answer, Deployment) else None
        found = known[level]
        missed += found is None
        shapes.append(found.shape if found else None)
        gpus.append(found.gpus if found else MAX_GPUS)
    return {
        "gpu_hours": sum(gpus) * MINUTES / 60,
        "least": min(gpus),
        "most": max(gpus),
        "missed_intervals": missed,
        "gpus": gpus,
        "shapes": shapes,
    }


def plot(data: Data, axes: Sequence[Axes]) -> None:
    hours = [i * MINUTES / 60 for i in range(len(data["load_over_mean"]))]
    for axis, one in zip(axes, data["days"], strict=True):
        for system, style in zip(SYSTEMS, STYLES, strict=True):
            found = one["systems"][system]
            label = f"{system}: {found['gpu_hours']:.0f} GPU hours"
            axis.step(hours, found["gpus"], style, where="post", lw=1.4, label=label)
        axis.set_title(
            f"calibration: {one['calibration']}, {one['objective_ms']:.0f} ms", fontsize=10
        )
        axis.set_xlabel("hour")
        axis.set_ylim(0, MAX_GPUS * 2)
        axis.legend(fontsize=8, loc="upper left")
    axes[0].set_ylabel("GPUs")


def compare(data: Data) -> list[Comparison]:
    rows = []
    for one in data["days"]:
        calibration, systems = one["calibration"], one["systems"]
        ours = systems["janus"]
        rows.append(
            Comparison(
                f"GPUs over the day, `{calibration}`",
                "7 to 56",
                f"{ours['least']} to {ours['most']}",
                "the most is set, the least is found",
            )
        )
        for system in SYSTEMS[1:]:
            other = systems[system]
            saved = 1 - ours["gpu_hours"] / other["gpu_hours"]
            paper = f"{PAPER[system]} %" if system in PAPER else "not printed"
            missed = f"; {other['missed_intervals']} of 96 intervals beyond its {MAX_GPUS} GPUs"
            rows.append(
                Comparison(
                    f"GPU hours saved against {system}, `{calibration}`",
                    paper,
                    f"{saved:.0%} ({ours['gpu_hours']:.0f} against {other['gpu_hours']:.0f})"
                    + (missed if other["missed_intervals"] else ""),
                    SHARED_HEADS if system == "sglang" else WHY,
                )
            )
        other = one["sglang_if_surplus_is_undivided"]
        if other:
            rows.append(
                Comparison(
                    f"... if GPUs that share heads do not share the surplus, `{calibration}`",
                    "39 %",
                    f"{1 - ours['gpu_hours'] / other['gpu_hours']:.0%} ({ours['gpu_hours']:.0f} "
                    f"against {other['gpu_hours']:.0f})",
                    "the paper does not say what its time per token of an attention instance is "
                    "spent on; here and in figure 8 it is divided as the heads are",
                )
            )
        other = one["megascale_if_surplus_is_idle"]
        if other:
            rows.append(
                Comparison(
                    f"... if megascale-infer's balance does not see the surplus, `{calibration}`",
                    "16 %",
                    f"{1 - ours['gpu_hours'] / other['gpu_hours']:.0%} ({ours['gpu_hours']:.0f} "
                    f"against {other['gpu_hours']:.0f}); {other['missed_intervals']} of 96 "
                    f"intervals beyond its {MAX_GPUS} GPUs",
                    "as for figure 8: fewer shapes count as balanced",
                )
            )
    return rows


SHARED_HEADS = (
    "8 GPUs that share the heads of attention (TP) hold the model, one more than 1A6E, and under "
    "load a monolithic deployment serves more on each GPU: no device waits for another pool. The "
    "savings over `sglang-dp`, which needs 16 GPUs at least, are near the paper's"
)
WHY = (
    "our trace is another; how much finer steps save depends on how often the load lies just above "
    "a step"
)
