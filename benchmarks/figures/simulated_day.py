"""Not in the paper: the day of figure 11 in the simulator, where changes take time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.figures import fig11_day
from benchmarks.figures.figure import Axes, Comparison, Data
from benchmarks.figures.routing import NUM_EXPERTS, SLOTS, like_paper
from benchmarks.figures.settings import oracle

from janus_moe.plan.baselines import BaselineName
from janus_moe.sim.amax import SampledAmax
from janus_moe.sim.deployment import Deployments
from janus_moe.sim.generators import generate
from janus_moe.sim.planned import planning_problem
from janus_moe.sim.policies import Choices, named_policy
from janus_moe.sim.report import Objective, make_report
from janus_moe.sim.simulate import Timing, simulate
from janus_moe.sim.state import Limits
from janus_moe.sim.workload import Workload

NUMBER = "simulated-day"
TITLE = "The day of figure 11, request by request (calibration: paper, 150 ms)"
BASIS = (
    "Modelled: discrete events with the engine's batching, and the planners of figure 11 as "
    "scaling policies (docs/simulation.md), a million synthetic requests. Unlike figure 11, a "
    "decision knows only the interval before it, provides 1.3 times its rate and for those who "
    "wait, and new instances take time to load (20 s and their weights at 10 GB/s, assumed). "
    "Objectives: 150 ms per token and 2 s to the first."
)
PANELS = (2, 2)
DAY_S, HEADROOM = 86_400.0, 1.3
OBJECTIVE = Objective(tpot_s=0.15, ttft_s=2.0)
KEYS = (
    *("gpu_hours", "slo_attainment", "slo_tpot_attainment", "slo_ttft_attainment"),
    *("max_gpus", "num_decisions", "num_short", "mean_tpot_ms", "median_ttft_ms"),
)
SYSTEMS: tuple[BaselineName, ...] = fig11_day.SYSTEMS


class Timed(NamedTuple):
    """on_load: decide early at this many times the rate that the last decision saw."""

    title: str
    on_load: float | None


TIMES = {
    "every 15 min": Timed("a decision every 15 minutes", None),
    "early": Timed("and as soon as the rate is 1.5 times as high", 1.5),
}


def data(seed: int = 0) -> Data:
    rate = fig11_day.day("paper", fig11_day.load_of_day(seed), ("janus",))["mean_requests_per_s"]
    workload = generate("diurnal", rate, DAY_S, seed, peak_ratio=fig11_day.PEAK)
    return {
        "requests": len(workload.arrival_s),
        "mean_requests_per_s": rate,
        "runs": {
            name: {system: played(workload, system, timed, seed) for system in SYSTEMS}
            for name, timed in TIMES.items()
        },
    }


def played(workload: Workload, system: BaselineName, timed: Timed, seed: int) -> Data:
    choices = choices_of(seed)
    policy = named_policy(system, choices, workload)
    report = make_report(simulate(workload, policy, Timing(on_load=timed.on_load)), OBJECTIVE)
    return {
        **{key: report.figures[key] for key in KEYS},
        "configuration": list(report.configuration),
        "gpus": [one.gpus for one in report.intervals],
        "attained": [one.attained for one in report.intervals],
    }


def choices_of(seed: int) -> Choices:
    """The paper's setting: 27 slots, no micro-batches, up to 64 GPUs."""
    one, sample, limits = oracle("paper"), like_paper(), Limits(16, 1024, 2048)
    most = fig11_day.MAX_GPUS
    return Choices(
        deployments=Deployments(one, SampledAmax(sample, NUM_EXPERTS, seed), limits),
        problem=planning_problem(one, sample, limits, OBJECTIVE.tpot_s, most, seed),
        headroom=HEADROOM,
        changes=(("slots", SLOTS), ("micro_batches", (1,))),
    )


def plot(data: Data, axes: Sequence[Axes]) -> None:
    for column, (name, timed) in enumerate(TIMES.items()):
        above, below = axes[column], axes[2 + column]
        for system, style in zip(SYSTEMS, ("-", "-", "--", ":"), strict=True):
            run = data["runs"][name][system]
            hours = [i / 4 for i in range(len(run["gpus"]))]
            label = f"{system}: {run['gpu_hours']:.0f} GPU hours"
            above.step(hours, run["gpus"], style, where="post", lw=1.4, label=label)
            label = f"{system}: {run['slo_attainment']:.0%} of requests"
            shown = [float("nan") if value is None else value for value in run["attained"]]
            below.step(hours, shown, style, where="post", lw=1.4, label=label)
        above.set_title(timed.title, fontsize=10)
        above.set_ylim(0, above.get_ylim()[1] * 1.4)
        below.set_ylim(-0.55, 1.05)
        below.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
        below.set_xlabel("hour")
        for axis, place in ((above, "upper left"), (below, "lower left")):
            axis.legend(fontsize=8, loc=place)
    axes[0].set_ylabel("GPUs held, mean of 15 minutes")
    axes[2].set_ylabel("share within both objectives")


def compare(data: Data) -> list[Comparison]:
    rows = []
    for name, runs in data["runs"].items():
        ours = runs["janus"]["gpu_hours"]
        for system, run in runs.items():
            saved = f", of which janus saves {1 - ours / run['gpu_hours']:.0%}"
            paper = fig11_day.PAPER.get(system)
            rows.append(
                Comparison(
                    f"{system}, decisions {name}",
                    "" if paper is None else f"janus saves {paper} % (its trace)",
                    f"{run['gpu_hours']:.0f} GPU hours{'' if system == 'janus' else saved}; "
                    f"{run['slo_tpot_attainment']:.0%} of requests within 150 ms per token, "
                    f"{run['slo_ttft_attainment']:.0%} within 2 s to the first, "
                    f"{run['slo_attainment']:.0%} within both",
                    WHY if system == "janus" and name == "every 15 min" else "",
                )
            )
    return rows


WHY = "a burst is over before a decision every 15 minutes has seen it; coarse steps have slack"
