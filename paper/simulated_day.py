"""Not in the paper: a day of figure 11's kind in the simulator, where changes take time, and what
it takes to keep the objective for equal shares of the requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from janus_moe.planner.search import problem as plan
from janus_moe.planner.search.baselines import BaselineName, BaselinePlanner
from janus_moe.planner.search.problem import PoolStyle, Saturate
from janus_moe.planner.search.search import PoolSearch
from janus_moe.planner.simulation.deployment import Deployments
from janus_moe.planner.simulation.generators import generate
from janus_moe.planner.simulation.max_activated import SampledMaxActivated
from janus_moe.planner.simulation.planned import planning_problem
from janus_moe.planner.simulation.policies import PolicyContext, named_policy
from janus_moe.planner.simulation.report import LatencyObjective, make_report
from janus_moe.planner.simulation.simulate import SimulationSettings, simulate
from janus_moe.planner.simulation.state import BatchLimits
from janus_moe.planner.simulation.workload import RequestTrace
from paper import fig11_day
from paper.figure import Axes, Comparison, Data
from paper.planning import SYSTEMS
from paper.routing import NUM_EXPERTS, SLOTS, like_paper
from paper.settings import OUTPUT, PROMPT, oracle

NUMBER = "simulated-day"
TITLE = "A day like figure 11's, request by request (calibration: paper, 150 ms)"
BASIS = (
    "Modelled: discrete events with the engine's batching, and the planners of figure 11 as "
    "scaling policies (docs/simulation.md), 0.7 million synthetic requests. Unlike figure 11, a "
    "decision knows only the past, every 15 minutes or as soon as the load is 1.15 times what the "
    "last one saw, prompts are computed by the same GPUs, and new instances take time to load "
    "(20 s and their weights at 10 GB/s, assumed). The scale is set so that the busiest quarter of "
    "an hour with a headroom of 1.3 is what Janus serves with 56 GPUs. Every policy is run with "
    "every headroom; what it takes to keep 150 ms per token for 90 and 95 % of the requests is "
    "read off between those runs."
)
PANELS = (1, 3)
DAY_S, HEADROOM, ON_LOAD = 86_400.0, 1.3, 1.15
HEADROOMS = (0.85, 1.0, 1.15, 1.3, 1.5, 1.8)
SHARES = (0.9, 0.95)
OBJECTIVE = LatencyObjective(tpot_s=0.15, ttft_s=2.0)
KEYS = (
    *("gpu_hours", "slo_attainment", "slo_tpot_attainment", "slo_ttft_attainment"),
    *("max_gpus", "num_decisions", "num_short", "mean_tpot_ms", "median_ttft_ms"),
)


def data(seed: int = 0) -> Data:
    choices = choices_of(seed)
    rate = scale(choices, seed)
    workload = generate("diurnal", rate, DAY_S, seed, peak_ratio=fig11_day.PEAK)
    runs = {system: sweep(workload, system, choices) for system in SYSTEMS}
    return {
        "requests": len(workload.arrival_s),
        "mean_requests_per_s": rate,
        "runs": runs,
        "gpu_hours_at_share": {
            system: {f"{share:.0%}": hours_at(own, share) for share in SHARES}
            for system, own in runs.items()
        },
        "only_every_15_min": {
            system: played(workload, system, choices, None) for system in SYSTEMS
        },
    }


def scale(choices: PolicyContext, seed: int) -> float:
    """Mean requests per second of the day."""
    most = fig11_day.MOST_GPUS
    asked = replace(
        choices.problem,
        lengths=plan.RequestLengths(isl=PROMPT, osl=OUTPUT),
        demand=Saturate(),
        max_gpus=most,
        max_copies=1,
    )
    style = BaselinePlanner.of("janus", asked, **dict(choices.changes)).config.style
    assert isinstance(style, PoolStyle)
    (busiest,) = PoolSearch(asked, style).largest(most)
    load = fig11_day.load_of_day(seed)
    return busiest.tokens_per_s / OUTPUT / HEADROOM / float(load.max())


def sweep(workload: RequestTrace, system: BaselineName, choices: PolicyContext) -> list[Data]:
    """One run for each headroom, the least first."""
    return [
        {"headroom": headroom}
        | played(workload, system, replace(choices, headroom=headroom), ON_LOAD)
        for headroom in HEADROOMS
    ]


def played(
    workload: RequestTrace, system: BaselineName, choices: PolicyContext, on_load: float | None
) -> Data:
    policy = named_policy(system, choices, workload)
    report = make_report(simulate(workload, policy, SimulationSettings(on_load=on_load)), OBJECTIVE)
    found: Data = {key: report.figures[key] for key in KEYS}
    if choices.headroom == HEADROOM:
        found["configuration"] = list(report.configuration)
        found["gpus"] = [one.gpus for one in report.intervals]
        found["attained"] = [one.attained for one in report.intervals]
    return found


def hours_at(runs: Sequence[Data], share: float) -> float | None:
    """GPU hours that keep the TPOT objective for a share of the requests: between the cheapest run
    that does and the best of those that cost less; None where no run does."""
    points = [(one["gpu_hours"], one["slo_tpot_attainment"]) for one in runs]
    enough = [point for point in points if point[1] >= share]
    if not enough:
        return None
    hours, above = min(enough)
    cheaper = [point for point in points if point[0] < hours]
    if not cheaper:
        return float(hours)
    below_hours, below = max(cheaper, key=lambda point: point[1])
    return float(below_hours + (hours - below_hours) * (share - below) / (above - below))


def choices_of(seed: int) -> PolicyContext:
    """The paper's setting: 27 slots, no micro-batches, up to 64 GPUs."""
    one, sample, limits = oracle("paper"), like_paper(), BatchLimits(16, 1024, 2048)
    most = fig11_day.MAX_GPUS
    return PolicyContext(
        deployments=Deployments(one, SampledMaxActivated(sample, NUM_EXPERTS, seed), limits),
        problem=planning_problem(one, sample, limits, OBJECTIVE.tpot_s, most, seed),
        headroom=HEADROOM,
        changes=(("slots", SLOTS), ("micro_batches", (1,))),
    )


def at_headroom(data: Data, system: str) -> Data:
    """The run that every report begins with."""
    found: Data = next(one for one in data["runs"][system] if one["headroom"] == HEADROOM)
    return found


def plot(data: Data, axes: Sequence[Axes]) -> None:
    left, middle, right = axes
    for system, style in zip(SYSTEMS, fig11_day.STYLES, strict=True):
        run, runs = at_headroom(data, system), data["runs"][system]
        hours = [i / 4 for i in range(len(run["gpus"]))]
        left.step(hours, run["gpus"], style, where="post", lw=1.3, label=system)
        shown = [float("nan") if value is None else value for value in run["attained"]]
        middle.step(hours, shown, style, where="post", lw=1.3)
        points = [(one["gpu_hours"], one["slo_tpot_attainment"]) for one in runs]
        right.plot(*zip(*points, strict=True), style, marker=".", lw=1.3)
    left.set_title(f"GPUs held, headroom {HEADROOM}", fontsize=10)
    left.legend(fontsize=8)
    left.set_ylim(0)
    middle.set_title("share within both objectives", fontsize=10)
    right.set_title("share within 150 ms per token,\nby headroom", fontsize=10)
    for axis in (left, middle):
        axis.set_xlabel("hour")
    for share in SHARES:
        right.axhline(share, color="grey", lw=0.7)
    for axis in (middle, right):
        axis.set_ylim(0, 1.03)
    right.set_xlabel("GPU hours")


def compare(data: Data) -> list[Comparison]:
    rows = [
        Comparison(f"{system}, headroom {HEADROOM}", "", described(at_headroom(data, system)))
        for system in SYSTEMS
    ]
    rows += [
        Comparison(f"{system}, decisions every 15 min only", "", described(run))
        for system, run in data["only_every_15_min"].items()
    ]
    for share in data["gpu_hours_at_share"]["janus"]:
        for system in SYSTEMS[1:]:
            paper = fig11_day.PAPER.get(system)
            rows.append(
                Comparison(
                    f"GPU hours saved against {system}, {share} of requests within 150 ms",
                    "" if paper is None else f"{paper} % (its trace, changes cost nothing)",
                    saving(data, system, share),
                    {"sglang": fig11_day.SHARED_HEADS, "sglang-dp": WHY}.get(system, "")
                    if share == "90%"
                    else "",
                )
            )
    return rows


def described(run: Data) -> str:
    return (
        f"{run['gpu_hours']:.0f} GPU hours; {run['slo_tpot_attainment']:.1%} of requests within "
        f"150 ms per token, {run['slo_ttft_attainment']:.1%} within 2 s to the first"
    )


def saving(data: Data, system: str, share: str) -> str:
    """Says what janus saves over another system.

    "or less" means that the other one's cheapest run is above the share.
    """
    ours, theirs = (data["gpu_hours_at_share"][name][share] for name in ("janus", system))
    if ours is None or theirs is None:
        return f"not reached by {'janus' if ours is None else system} with these headrooms"
    cheapest = min(one["gpu_hours"] for one in data["runs"][system])
    least = " or less" if theirs == cheapest else ""
    return f"{1 - ours / theirs:.0%} ({ours:.0f} against {theirs:.0f}{least})"


WHY = (
    "finer steps follow the load; a burst is over soon, so a policy that looks back needs "
    "headroom, which coarse steps have anyway"
)
