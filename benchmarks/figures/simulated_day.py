"""Not in the paper: the day of figure 11 in the simulator, where changes take time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.figures import fig11_day
from benchmarks.figures.figure import Axes, Comparison, Data
from benchmarks.figures.routing import NUM_EXPERTS, SLOTS, like_paper
from benchmarks.figures.settings import oracle

from janus_moe.sim.deployment import Deployments, SampledAmax
from janus_moe.sim.generators import generate
from janus_moe.sim.policies import named_policy
from janus_moe.sim.report import Objective, make_report
from janus_moe.sim.simulate import Timing, simulate
from janus_moe.sim.state import Limits
from janus_moe.sim.workload import Workload

NUMBER = "simulated-day"
TITLE = "The day of figure 11, request by request (calibration: paper, 150 ms)"
BASIS = (
    "Modelled: discrete events with the engine's batching and scaling policies of "
    "docs/simulation.md, a million synthetic requests. Unlike figure 11, a decision knows only the "
    "interval before it, provides 1.3 times its rate, and new instances take time to load (20 s "
    "and their weights at 10 GB/s, assumed)."
)
PANELS = (1, 2)
DAY_S, OBJECTIVE_S, HEADROOM = 86_400.0, 0.15, 1.3


class Run(NamedTuple):
    """on_load: decide early at this many times the rate that the last decision saw."""

    policy: str
    on_load: float | None


RUNS = {
    "janus": Run("janus", None),
    "janus, early": Run("janus", 1.5),
    "monolithic": Run("monolithic", None),
}


def data(seed: int = 0) -> Data:
    rate = fig11_day.day("paper", fig11_day.load_of_day(seed), ("janus",))["mean_requests_per_s"]
    workload = generate("diurnal", rate, DAY_S, seed, peak_ratio=fig11_day.PEAK)
    return {
        "requests": len(workload.arrival_s),
        "mean_requests_per_s": rate,
        "runs": {name: played(workload, run, seed) for name, run in RUNS.items()},
    }


def played(workload: Workload, run: Run, seed: int) -> Data:
    a_max = SampledAmax(like_paper(), NUM_EXPERTS, seed=seed)
    slots = SLOTS * 6 / NUM_EXPERTS  # a pool of six is full; larger ones keep their spare memory
    deployments = Deployments(oracle("paper"), a_max, Limits(16, 1024, 2048), slots)
    policy = named_policy(run.policy, deployments, fig11_day.MAX_GPUS, OBJECTIVE_S, HEADROOM)
    report = make_report(
        simulate(workload, policy, Timing(on_load=run.on_load)), Objective(tpot_s=OBJECTIVE_S)
    )
    keys = ("gpu_hours", "slo_attainment", "max_gpus", "num_decisions", "mean_tpot_ms")
    return {
        **{key: report.figures[key] for key in keys if key in report.figures},
        "gpus": [one.gpus for one in report.intervals],
        "attained": [one.attained for one in report.intervals],
    }


def plot(data: Data, axes: Sequence[Axes]) -> None:
    for name, run in data["runs"].items():
        hours = [i / 4 for i in range(len(run["gpus"]))]
        label = f"{name}: {run['gpu_hours']:.0f} GPU hours"
        axes[0].step(hours, run["gpus"], where="post", label=label)
        label = f"{name}: {run['slo_attainment']:.1%} of requests"
        shown = [float("nan") if value is None else value for value in run["attained"]]
        axes[1].step(hours, shown, where="post", label=label)
    axes[0].set_ylabel("GPUs held, mean of 15 minutes")
    axes[1].set_ylabel("share within 150 ms per token")
    axes[0].set_ylim(0, axes[0].get_ylim()[1] * 1.3)
    axes[1].set_ylim(-0.35, 1.02)
    axes[1].set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes[0].legend(fontsize=8, loc="upper right")
    axes[1].legend(fontsize=8, loc="lower right")
    for axis in axes:
        axis.set_xlabel("hour")


def compare(data: Data) -> list[Comparison]:
    whole = data["runs"]["monolithic"]["gpu_hours"]
    return [
        Comparison(
            f"Day of {data['requests']:,} requests, {name}",
            "-39 % against SGLang (its trace)" if name == "janus" else "",
            f"{run['gpu_hours']:.0f} GPU hours ({run['gpu_hours'] / whole - 1:+.0%} against "
            f"monolithic), {run['slo_attainment']:.1%} of requests within 150 ms",
            "a burst is over before a decision every 15 minutes has seen it" if not index else "",
        )
        for index, (name, run) in enumerate(data["runs"].items())
    ]
