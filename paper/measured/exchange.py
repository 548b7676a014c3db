"""Pictures of the exchange alone: where plans win, other traffic, the steps of figure 12."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from janus_moe.planner.latency import LinkModel, device_profile
from janus_moe.spec import EXCHANGE_PLANS
from janus_moe.transport.exchange_plans import Topology
from janus_moe.transport.exchange_plans.program import RowBytes
from janus_moe.transport.network.plan_selection import predicted_times
from paper.measured.results import BENCHMARKS, PAPER, Rows, read
from paper.pictures import picture

HIDDEN, MEASURED_HIDDEN = 7168, 1024
BATCHES = [2**power for power in range(13)]
HOSTS = list(range(1, 9))
COLOURS = ("#4477aa", "#ccbb44", "#ee6677", "#228833")


def topology(hosts: int) -> Topology:
    attention = tuple(node for node in (0, 1) for _ in range(4))
    return Topology(attention, tuple(2 + host for host in range(hosts) for _ in range(4)))


def best_plans(links: LinkModel, hidden: int) -> Rows:
    rows = []
    for hosts in HOSTS:
        for batch in BATCHES:
            times = predicted_times(topology(hosts), batch, RowBytes(2 * hidden, 4 * hidden), links)
            order = np.argsort(times)
            second = times[order[1]]
            rows.append(
                {
                    "expert_hosts": hosts,
                    "tokens": batch,
                    "best": EXCHANGE_PLANS[order[0]],
                    "us": round(1e6 * times[order[0]], 1),
                    "second_over_best": round(second / times[order[0]], 3),
                    "1pc_over_best": round(times[0] / times[order[0]], 3),
                }
            )
    return rows


def measured_links() -> LinkModel:
    fits = read(BENCHMARKS, "exchange")["fits"]
    # With one attention host, costs of its link and of all bytes cannot be told apart.
    fit = next(f for f in fits if f["gbps"] == 1.0 and f["shape"] == "2A+2A+2E+2E")
    return LinkModel(**fit["links"], gpus_per_node=1)


def regions(path: Path) -> None:
    """The fastest plan over batch size and expert hosts, as the cost model predicts it.

    Two attention hosts with four instances each, four expert instances on each expert host. Left:
    links of H100 hosts from data sheets. Right: links that `benchmarks.exchange` found at 1 Gb/s.
    """
    h100 = device_profile("h100_sxm")
    sheets, measured = LinkModel.of(h100, h100), measured_links()
    panels = [
        ("H100 hosts, one 400 Gb/s link each", best_plans(sheets, HIDDEN)),
        ("1 Gb/s between namespaces, measured", best_plans(measured, MEASURED_HIDDEN)),
    ]
    draw_regions(path, panels)


def draw_regions(path: Path, panels: list[tuple[str, Rows]]) -> None:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    size = (6.2 * len(panels), 4.2)
    with picture(path, 1, len(panels), size=size, bottom=0.06) as (figure, axes):
        for axis, (title, rows) in zip(axes[0], panels, strict=True):
            grid = np.array(
                [
                    [
                        EXCHANGE_PLANS.index(row["best"])
                        for row in rows
                        if row["expert_hosts"] == hosts
                    ]
                    for hosts in HOSTS
                ]
            )
            axis.imshow(
                grid,
                cmap=ListedColormap(COLOURS),
                vmin=-0.5,
                vmax=3.5,
                origin="lower",
                aspect="auto",
            )
            for row in rows:
                place = (BATCHES.index(row["tokens"]), HOSTS.index(row["expert_hosts"]))
                axis.text(
                    *place, f"{row['1pc_over_best']:.1f}", ha="center", va="center", fontsize=7
                )
            axis.set_xticks(range(len(BATCHES)), BATCHES, fontsize=8)
            axis.set_yticks(range(len(HOSTS)), HOSTS, fontsize=8)
            axis.set_xlabel("tokens of all attention instances")
            axis.set_ylabel("expert hosts (4 instances each)")
            axis.set_title(title, fontsize=10)
        handles = [
            Patch(color=c, label=name) for c, name in zip(COLOURS, EXCHANGE_PLANS, strict=True)
        ]
        figure.legend(handles=handles, ncols=4, loc="lower center", fontsize=9)
        figure.suptitle("Fastest plan; numbers: time of 1pc over it", fontsize=11)


def sensitivity(path: Path) -> None:
    """Time of an exchange over tokens and over the token rate, with other traffic."""
    content = read(BENCHMARKS, "exchange_sensitivity")
    rows = content["rows"]
    batches = sorted({row["tokens"] for row in rows})
    colours = {0: "#3377bb", 1: "#cc8844", 4: "#bb2222"}
    with picture(path, 1, 2, size=(9.6, 3.8), sharey=True) as (figure, grid):
        left, right = grid[0]
        for flows in sorted({row["flows"] for row in rows}):
            for variant, line in (("1pc", "--"), ("auto", "-")):
                found = [row for row in rows if (row["flows"], row["variant"]) == (flows, variant)]
                times = [row["us"] / 1000 for row in found]
                label = f"{variant}, " + (f"{flows} other flow(s)" if flows else "link alone")
                style = {"ls": line, "marker": "o", "ms": 4, "color": colours.get(flows, "#777777")}
                left.plot([row["tokens"] for row in found], times, label=label, **style)
                right.plot([row["tokens_per_s"] / 1000 for row in found], times, **style)
        for axis in (left, right):
            axis.set_yscale("log")
            axis.grid(alpha=0.25)
        left.set_xscale("log", base=2)
        left.set_xticks(batches, [str(batch) for batch in batches])
        left.set_xlabel("tokens of all attention instances")
        left.set_ylabel("one exchange, there and back, ms")
        left.legend(fontsize=8)
        right.set_xlabel("thousand tokens per second through one layer's exchange")
        figure.suptitle(f"{content['shape']}, {rows[0]['gbps']:g} Gb/s links", fontsize=10)


def fig12_measured(path: Path) -> None:
    """A layer's time, step by step."""
    rows = read(PAPER, "fig12_measured")["rows"]
    cells = sorted({(row["gbps"], row["batch"]) for row in rows})
    lines = len({gbps for gbps, _ in cells})
    columns = len(cells) // lines
    size = (3.6 * columns + 1, 2.2 * lines + 0.6)
    with picture(path, lines, columns, size=size, sharey=True) as (_, grid):
        for axis, (gbps, batch) in zip(grid.flat, cells, strict=True):
            own = [row for row in rows if (row["gbps"], row["batch"]) == (gbps, batch)]
            names = [row["variant"] for row in own]
            exchange = [row["exchange_us"] / 1000 for row in own]
            axis.barh(names, exchange, color="#3377bb", label="exchange")
            busy = [row["experts_us"] / 1000 for row in own]
            axis.barh(names, busy, left=exchange, color="#cc8844", label="busiest experts")
            axis.set_title(f"{gbps:g} Gb/s, B = {batch}", fontsize=10)
            axis.grid(alpha=0.25, axis="x")
        grid[0][0].invert_yaxis()
        for axis in grid[-1]:
            axis.set_xlabel("one MoE layer, ms")
        grid[0][-1].legend(fontsize=8, loc="lower right")
