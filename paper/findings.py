"""The few sentences that sum up all figures, with their numbers from the data."""

from __future__ import annotations

from collections.abc import Mapping

from paper import ablation, fig11_day, fig16_space, simulated_day
from paper.fig08_throughput import PAPER as RATIOS
from paper.figure import Data
from paper.routing import SLOTS
from paper.settings import CALIBRATIONS


def findings(data: Mapping[str, Data]) -> str:
    """Writes the findings as a Markdown list.

    data: number of a figure -> what it holds.
    """
    sentences = (_shapes, _ratios, _day, _activation, _alone, _no_gain)
    return "\n".join(f"- {sentence(data)}" for sentence in sentences)


def _shapes(data: Mapping[str, Data]) -> str:
    chosen: dict[str, list[str]] = {c: [] for c in CALIBRATIONS}
    for point in data["16"]["points"]:
        chosen[point["calibration"]].append(str(point["chosen"]))
    each = "; ".join(f"{', '.join(shapes)} under `{c}`" for c, shapes in chosen.items())
    return (
        f"Shapes (figures 9 and 16): the paper takes {', '.join(fig16_space.PAPER.values())} for "
        f"64, 256 and 512 requests. Within 150 ms the planner takes {each}."
    )


def _ratios(data: Mapping[str, Data]) -> str:
    parts = []
    for baseline, paper in RATIOS.items():
        ours = [p["ratio"] for p in data["8"]["peaks"] if p["baseline"] == baseline]
        both = ", ".join(f"{r:.1f} under `{c}`" for r, c in zip(ours, CALIBRATIONS, strict=True))
        parts.append(f"{paper} over {baseline}: {both}")
    held = ", ".join(
        f"{one['ratio']:.1f} under `{one['calibration']}`"
        for one in data["8"]["sglang_held_at"]
        if one["gpus"] == 32
    )
    return (
        f"Peak ratios (figure 8): {'; '.join(parts)}. The 4.7 needs a baseline that holds two "
        "to four times the GPUs of 1A6E and is not faster for them; held at 32 GPUs with 64 "
        f"requests, SGLang gives {held}. `sglang` shares the heads of attention among GPUs (TP) "
        "where that is better, `sglang-dp` never does."
    )


def _day(data: Mapping[str, Data]) -> str:
    parts = []
    for one in data["11"]["days"]:
        ours = one["systems"]["janus"]["gpu_hours"]
        saved = ", ".join(
            f"{1 - ours / one['systems'][s]['gpu_hours']:.0%} against {s} (paper {p} %)"
            for s, p in fig11_day.PAPER.items()
        )
        parts.append(f"{saved} under `{one['calibration']}`")
    day = data["simulated-day"]
    equal = "; ".join(
        f"{share}: "
        + ", ".join(f"{simulated_day.saving(day, s, share)} against {s}" for s in fig11_day.PAPER)
        for share in day["gpu_hours_at_share"]["janus"]
    )
    return (
        f"GPU hours saved on a bursty day (figure 11): {'; '.join(parts)}. Simulated request by "
        "request, with loading times and decisions on the past (`paper`), at equal shares of "
        f"requests within 150 ms per token: {equal}."
    )


def _activation(data: Mapping[str, Data]) -> str:
    rows = [r for r in data["17"]["rows"] if r["paper"] and r["instances"] != 6]
    errors = [abs(r["one_slot_per_expert"] / r["paper"] - 1) for r in rows]
    spare = [1 - r["monte_carlo"] / r["paper"] for r in rows]
    return (
        f"Activated experts (figure 17): routing fitted to the paper's values for 6 instances "
        f"predicts its {len(rows)} other values within {max(errors):.0%} if no spare slots are "
        f"used. With all {SLOTS} slots per instance the busiest one reads "
        f"{min(spare):.0%} to {max(spare):.0%} less than the paper prints."
    )


def _alone(data: Mapping[str, Data]) -> str:
    names = list(ablation.VARIANTS)
    parts = []
    for calibration in CALIBRATIONS:
        tpg = {
            r["variant"]: r["tpg"]
            for r in data["ablation"]["rows"]
            if (r["calibration"], r["batch"]) == (calibration, 256)
        }
        steps, sizes, scheduler, static, full = (tpg[name] for name in names)
        parts.append(
            f"finer sizes alone {sizes / steps:.2f}, the scheduler alone {scheduler / steps:.2f}, "
            f"pools with static replicas {static / steps:.2f}, all {full / steps:.2f} under "
            f"`{calibration}`"
        )
    return (
        "Each idea alone, as a factor on a monolithic deployment in steps of 8/16/32 GPUs (B=256): "
        f"{'; '.join(parts)}. Below 1 the monolithic deployment, which shares the heads of "
        "attention among GPUs where that is better, serves more on each GPU."
    )


def _no_gain(data: Mapping[str, Data]) -> str:
    cases = data["ablation"]["no_gain"]
    verdicts = ", ".join(f"{c['verdict']} (`{c['calibration']}`)" for c in cases)
    return f"The case that must show no gain ({cases[0]['model']}, uniform routing): {verdicts}."
