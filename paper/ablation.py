"""Not in the paper: what each idea gives alone, and a case in which none may give anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from janus_moe.planner.search.answers import Answer, Infeasible
from janus_moe.planner.search.monolithic import MonolithicSearch
from janus_moe.planner.search.problem import MonolithicStyle, PoolStyle
from janus_moe.planner.search.recommend import recommend, why_no_pools, why_not_monolithic
from janus_moe.planner.search.search import PoolSearch
from paper.figure import Axes, Comparison, Data
from paper.planning import GPUS, MICRO_BATCHES, Question, described, problem
from paper.routing import SLOTS
from paper.settings import CALIBRATIONS, CalibrationName

NUMBER = "ablation"
TITLE = "Tokens per second and GPU: each idea alone (DeepSeek-V2)"
BASIS = (
    "Modelled: fewest of up to 32 H100 that serve the batch within 150 ms (`paper`) or 50 ms "
    "(`fitted`). Attention in the monolithic cases is data parallel or its heads are "
    "shared (TP), whichever is better. The last rows of the table are the case that must show "
    "no gain."
)
PANELS = (1, 2)
BATCHES = (64, 256, 512, 1024)
OBJECTIVE_S: dict[CalibrationName, float] = {"fitted": 0.05, "paper": 0.15}
STEPS, ANY = (8, 16, 32), tuple(range(1, GPUS + 1))
REDUNDANCY = 1.25  # of a scheduler on a monolithic deployment

VARIANTS: dict[str, PoolStyle | MonolithicStyle] = {
    "monolithic, steps of 8/16/32": MonolithicStyle(sizes=STEPS, policy="random"),
    "(iv) scaling alone: monolithic, any size": MonolithicStyle(sizes=ANY, policy="random"),
    "(iii) scheduler alone: steps, exact": MonolithicStyle(
        sizes=STEPS, policy="exact", redundancy=REDUNDANCY
    ),
    "(ii) pools, static replicas": PoolStyle(policy="random", slots=SLOTS),
    "(i) full: pools, exact": PoolStyle(policy="exact", slots=SLOTS),
}


def data(seed: int = 0) -> Data:
    rows = [
        {
            "calibration": calibration,
            "batch": batch,
            "variant": name,
            **described(solve(Question(calibration, batch, OBJECTIVE_S[calibration]), style)),
        }
        for calibration in CALIBRATIONS
        for batch in BATCHES
        for name, style in VARIANTS.items()
    ]
    return {"rows": rows, "no_gain": [no_gain(c) for c in CALIBRATIONS]}


def solve(question: Question, style: PoolStyle | MonolithicStyle) -> Answer:
    asked = replace(problem(question), max_copies=1)
    style = replace(style, micro_batches=micro_batches(question.calibration))
    if isinstance(style, PoolStyle):
        pools = PoolSearch(asked, style)
        found = pools.cheapest()
        return found[0] if found else why_no_pools(pools)
    whole = MonolithicSearch(asked, style)
    return whole.cheapest() or Infeasible(reason=why_not_monolithic(whole))


@lru_cache(None)
def micro_batches(calibration: CalibrationName) -> tuple[int, ...]:
    return tuple(range(1, MICRO_BATCHES[calibration] + 1))


NO_GAIN_MODEL, NO_GAIN_BATCH = "mixtral-8x7b", 512


def no_gain(calibration: CalibrationName) -> Data:
    """Uniform routing of a model with few large experts, all of them active at this batch:
    nothing to balance, nothing to scale apart."""
    question = Question(
        calibration, NO_GAIN_BATCH, OBJECTIVE_S[calibration], NO_GAIN_MODEL, spread=0.0
    )
    made = recommend(
        problem(question), PoolStyle(micro_batches=micro_batches(calibration)), MonolithicStyle()
    )
    static = replace(
        PoolStyle(micro_batches=micro_batches(calibration)), policy="random", redundancies=(1.0,)
    )
    exact = replace(static, policy="exact")
    return {
        "calibration": calibration,
        "model": NO_GAIN_MODEL,
        "batch": NO_GAIN_BATCH,
        "verdict": made.verdict.headline if made.verdict else "neither is possible",
        "gain": made.verdict.gain if made.verdict else None,
        "reasons": list(made.verdict.reasons) if made.verdict else [],
        "pools": described(made.pools[0]) if made.pools else None,
        "monolithic": described(made.monolithic) if made.monolithic else None,
        "static_a_max": described(solve(question, static)).get("a_max"),
        "exact_a_max": described(solve(question, exact)).get("a_max"),
    }


def plot(data: Data, axes: Sequence[Axes]) -> None:
    for axis, calibration in zip(axes, CALIBRATIONS, strict=True):
        for index, name in enumerate(VARIANTS):
            own = [
                row
                for row in data["rows"]
                if (row["calibration"], row["variant"]) == (calibration, name)
            ]
            x = [i + 0.16 * (index - 2) for i in range(len(own))]
            axis.bar(x, [row["tpg"] for row in own], 0.15, label=name)
            for left, row in zip(x, own, strict=True):
                if not row["tpg"]:
                    axis.text(left, 0, "x", ha="center", va="bottom", fontsize=8, color="red")
        axis.set_xticks(range(len(BATCHES)), [str(batch) for batch in BATCHES])
        axis.set_xlabel("requests in flight (x: objective missed)")
        limit = f"{1e3 * OBJECTIVE_S[calibration]:.0f} ms"
        axis.set_title(f"calibration: {calibration}, {limit}", fontsize=10)
    axes[0].set_ylabel("tokens per second and GPU")
    axes[0].legend(fontsize=7)


def compare(data: Data) -> list[Comparison]:
    rows = []
    for calibration in CALIBRATIONS:
        for batch in BATCHES:
            own = {
                row["variant"]: row
                for row in data["rows"]
                if (row["calibration"], row["batch"]) == (calibration, batch)
            }
            rows.append(
                Comparison(
                    f"B={batch}, `{calibration}`",
                    "not in the paper",
                    "; ".join(f"{name}: {_short(row)}" for name, row in own.items()),
                )
            )
    for case in data["no_gain"]:
        one = f"{_short(case['pools'])} in pools, " if case["pools"] else ""
        rows.append(
            Comparison(
                f"{case['model']}, uniform routing, B={case['batch']}, `{case['calibration']}`",
                "must show no gain",
                f"{case['verdict']}: {one}{_short(case['monolithic'])} monolithic; a_max "
                f"{case['static_a_max']:.2f} with static replicas, {case['exact_a_max']:.2f} with "
                "the scheduler, one slot per expert",
            )
        )
    return rows


def _short(row: Data | None) -> str:
    if not row or not row["shape"]:
        return "infeasible"
    return f"{row['shape']} {row['tpg']:.0f}"
