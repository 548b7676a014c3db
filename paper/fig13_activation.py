"""Figure 13: activated experts of the busiest instance under each policy and placement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from janus_moe.policy.activation import Policy
from janus_moe.policy.placement import PlacementMethod
from paper.figure import Axes, Comparison, Data
from paper.routing import NUM_EXPERTS, Amax, Sampler, like_paper, topics, uniform

NUMBER = "13"
TITLE = "Activated experts of the busiest instance"
BASIS = (
    "Modelled: the real schedulers and placements, Monte Carlo on synthetic routing of "
    "DeepSeek-V2's shape, 27 slots per instance. Recorded routing of a small model is in "
    "docs/scheduling.md."
)
PANELS = (2, 3)
INSTANCES, BATCHES = (8, 12, 16), (16, 32, 64, 128, 256, 512)
SLOTS = 27


class Scheme(NamedTuple):
    """A policy on a placement.

    spare: whether the slots beyond one per expert are used.
    """

    policy: Policy
    method: PlacementMethod
    spare: str = "all"


SCHEMES = {
    "exact on janus": Scheme("exact", "janus"),
    "AEBS (paper)": Scheme("aebs", "coactivation"),
    "EPLB": Scheme("token-split", "eplb"),
    "EPLB, 16 spare": Scheme("token-split", "eplb", "16"),
}
ROUTERS = {"popularity like the paper's": like_paper, "topics": topics, "uniform": uniform}


def slots_of(scheme: Scheme, instances: int) -> int:
    """EPLB's usual deployments have few redundant experts; 16 here, one per ten experts."""
    return SLOTS if scheme.spare == "all" else -(-(NUM_EXPERTS + 16) // instances)


def a_max_rows(name: str, sample: Sampler, seed: int) -> list[Data]:
    amax = Amax(sample, seed=seed)
    return [
        {
            "routing": name,
            "instances": instances,
            "batch": batch,
            "scheme": label,
            "slots": slots_of(scheme, instances),
            "a_max": amax.of(
                instances, batch, scheme.policy, scheme.method, slots_of(scheme, instances)
            ),
        }
        for instances in INSTANCES
        for batch in BATCHES
        for label, scheme in SCHEMES.items()
    ]


def data(seed: int = 0) -> Data:
    return {"rows": [row for n, make in ROUTERS.items() for row in a_max_rows(n, make(), seed)]}


def plot(data: Data, axes: Sequence[Axes]) -> None:
    draw(data, axes, "a_max", "activated experts")


def draw(data: Data, axes: Sequence[Axes], value: str, unit: str) -> None:
    names = list(ROUTERS)[:2]
    for place, (name, n) in enumerate((name, n) for name in names for n in INSTANCES):
        axis = axes[place]
        for label in SCHEMES:
            own = [
                row
                for row in data["rows"]
                if (row["routing"], row["instances"], row["scheme"]) == (name, n, label)
            ]
            axis.plot([r["batch"] for r in own], [r[value] for r in own], marker="o", label=label)
        axis.set_title(f"{name}, {n} expert instances", fontsize=9)
        axis.set_xscale("log", base=2)
        axis.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
        axis.set_ylim(bottom=0)
        if place % len(INSTANCES) == 0:
            axis.set_ylabel(unit)
        if place >= len(INSTANCES):
            axis.set_xlabel("tokens in the batch")
    axes[0].legend(fontsize=8)


def ratio(data: Data, routing: str, n: int, one: str, other: str, value: str) -> list[float]:
    """one / other for each batch."""
    found = {
        (row["batch"], row["scheme"]): row[value]
        for row in data["rows"]
        if (row["routing"], row["instances"]) == (routing, n)
    }
    return [found[batch, one] / found[batch, other] for batch in BATCHES]


def mean_over_batches(data: Data, routing: str, n: int, scheme: str, value: str) -> float:
    found = [
        row[value]
        for row in data["rows"]
        if (row["routing"], row["instances"], row["scheme"]) == (routing, n, scheme)
    ]
    return float(sum(found) / len(found))


def compare(data: Data) -> list[Comparison]:
    first = next(iter(ROUTERS))
    rows = []
    for n in INSTANCES:
        gains = [1 - r for r in ratio(data, first, n, "AEBS (paper)", "EPLB", "a_max")]
        ours = [1 - r for r in ratio(data, first, n, "exact on janus", "EPLB", "a_max")]
        rows.append(
            Comparison(
                f"a_max below EPLB, {n} instances",
                "below at every batch",
                f"AEBS {min(gains):.0%} to {max(gains):.0%} below, `exact` {min(ours):.0%} to "
                f"{max(ours):.0%}",
            )
        )
    few = [mean_over_batches(data, first, n, "EPLB, 16 spare", "a_max") for n in (8, 16)]
    many = [mean_over_batches(data, first, n, "EPLB", "a_max") for n in (8, 16)]
    rows.append(
        Comparison(
            "EPLB from 8 to 16 instances",
            "gains nothing",
            f"mean a_max {many[0]:.1f} to {many[1]:.1f} with all slots used, {few[0]:.1f} to "
            f"{few[1]:.1f} with 16 spare slots in all",
            "token-wise splitting activates replicas on all their holders, so spare slots gain "
            "little; but 16 instances hold half as many experts each, and no balance undoes that",
        )
    )
    return rows
