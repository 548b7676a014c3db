"""Where each exchange plan is predicted to win: batch size by number of expert hosts.

    python -m paper.measured.regions [--json FILE.json] [--figure FILE.png]
        [--measured benchmarks/results/exchange_adaptive.json]

Two attention hosts with four instances each, four expert instances on each expert host, rows of
7168 bfloat16 (dispatch) and float32 (sums). Left: links of H100 hosts from data sheets. Right:
rows of 1024 and the links that `--measured` found between namespaces at 1 Gb/s.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.support.report import machine_facts, write_json
from paper.pictures import picture

from janus_moe.planner.latency import LinkModel, device_profile
from janus_moe.spec import EXCHANGE_PLANS
from janus_moe.transport.exchange_plans import Topology
from janus_moe.transport.exchange_plans.counts import RowBytes
from janus_moe.transport.network.plan_selection import predicted_times

HIDDEN, MEASURED_HIDDEN = 7168, 1024
BATCHES = [2**power for power in range(13)]
HOSTS = list(range(1, 9))
COLOURS = ("#4477aa", "#ccbb44", "#ee6677", "#228833")


def topology(hosts: int) -> Topology:
    attention = tuple(node for node in (0, 1) for _ in range(4))
    return Topology(attention, tuple(2 + host for host in range(hosts) for _ in range(4)))


def regions(links: LinkModel, hidden: int) -> list[dict[str, Any]]:
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


def measured_links(path: Path) -> LinkModel:
    fits = json.loads(path.read_text())["fits"]
    # With one attention host, costs of its link and of all bytes cannot be told apart.
    fit = next(f for f in fits if f["gbps"] == 1.0 and f["shape"] == "2A+2A+2E+2E")
    return LinkModel(**fit["links"], gpus_per_node=1)


def draw(path: Path, panels: list[tuple[str, list[dict[str, Any]]]]) -> None:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--measured", type=Path, help="result of benchmarks.exchange_adaptive")
    options = parser.parse_args()
    h100 = device_profile("h100_sxm")
    panels = [("H100 hosts, one 400 Gb/s link each", regions(LinkModel.of(h100, h100), HIDDEN))]
    if options.measured:
        panels.append(
            ("1 Gb/s between namespaces, measured", regions(measured_links(options.measured), 1024))
        )
    if options.figure:
        draw(options.figure, panels)
    if options.json:
        facts = {"benchmark": "exchange_regions", "machine": machine_facts()}
        write_json(options.json, {**facts, "regions": dict(panels)})


if __name__ == "__main__":
    main()
