"""The adaptive exchange beside every fixed plan, alone and without compute, between hosts.

    python -m benchmarks.exchange_adaptive [--json FILE.json] [--rates 0.2 1 10]

Hosts are network namespaces with a limited link each (needs root). `2A+2E+2E` is one host with two
attention instances and two with two expert instances each. In each cell all plans are profiled, the
cost model is fitted, and all plans, each of them a second time, and `auto` take turns; three times
over. `auto` first gets steps until its race is over; what they cost is not in its times.

Times are lower quartiles. `over_best` is auto over the best plan, as both were measured; `regret`
is the plan that auto used over the best plan, both as fixed plans; `repeat` is the best plan over
itself, its second turns over its first ones: what noise alone does to such a ratio.

Claims: auto is within 5 % of the best fixed plan; it beats 1pc by 1.5x at the largest batch; the
model predicts batch sizes that were not profiled with a median error of at most 15 %, p90 30 %.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.support.hosts import HostsUnavailable, Link, Network, network
from benchmarks.support.report import machine_facts, print_table, write_json
from msgspec.structs import replace

from janus_moe.planner.latency.link_fit import exchange_seconds
from janus_moe.planner.latency.links import LinkModel
from janus_moe.profiling.exchange import AGAIN
from janus_moe.profiling.exchange_run import orders_of, run_orders
from janus_moe.profiling.exchange_times import ExchangeTimes, Timed, as_measured, fit_timed
from janus_moe.spec import PoolShape
from janus_moe.transport import ExchangeLayout

HIDDEN, DTYPE = 1024, "bfloat16"
PROFILE = (2, 8, 32, 128, 512)
BATCHES = (4, 16, 64, 256, 512)
LIMIT_S = 1800.0

_SINK = """
import socket, threading
listener = socket.create_server(("", 5002))
print("listening", flush=True)
while True:
    peer = listener.accept()[0]
    threading.Thread(target=lambda: [None for _ in iter(lambda: peer.recv(1 << 16), b"")]).start()
"""
_SOURCE = """
import socket, sys
peer = socket.create_connection((sys.argv[1], 5002))
while True:
    peer.sendall(bytes(1 << 16))
"""


def layout_of(shape: str, max_batch: int) -> ExchangeLayout:
    """`2A+2E`: hosts in order, each with one pool's instances."""
    pools: dict[str, list[int]] = {"A": [], "E": []}
    for node, part in enumerate(shape.split("+")):
        found = re.fullmatch(r"(\d+)([AE])", part)
        if found is None:
            raise SystemExit(f"{part!r} in {shape!r} is not like 2A or 4E")
        pools[found[2]] += [node] * int(found[1])
    return ExchangeLayout(
        shape=PoolShape(attention=len(pools["A"]), expert=len(pools["E"])),
        hidden_size=HIDDEN,
        dtype=DTYPE,  # type: ignore[arg-type]
        max_tokens=-(-max_batch // len(pools["A"])),
        attention_nodes=tuple(pools["A"]),
        expert_nodes=tuple(pools["E"]),
    )


@contextlib.contextmanager
def flow(hosts: Network, number: int) -> Iterator[None]:
    """Other TCP connections that send as fast as they can from the first host to the second."""
    if number:
        sink = hosts[1].popen(
            [sys.executable, "-c", _SINK], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        sink.stdout.readline()
        for _ in range(number):
            source = [sys.executable, "-c", _SOURCE, hosts[1].address]
            hosts[0].popen(source, stderr=subprocess.DEVNULL)
    yield


def measure(
    shape: str,
    link: Link,
    batches: Sequence[int],
    budget_s: float,
    flows: int,
    repeat: Literal["once", "twice"] = "twice",
) -> Any:
    layout = layout_of(shape, max((*batches, *PROFILE)))
    told = {"batches": PROFILE, "compared": tuple(batches), "budget_s": budget_s, "repeat": repeat}
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(network(1 + max(layout.expert_nodes), link))
        stack.enter_context(flow(hosts, flows))
        meeting = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        orders = [
            (order, host.popen)
            for node, host in enumerate(hosts)
            for order in orders_of(layout, node, meeting, host.address, **told)
        ]
        return layout, run_orders(orders, LIMIT_S)


def rows_of(
    cell: dict[str, Any],
    layout: ExchangeLayout,
    phase: str,
    every: Sequence[Timed],
    model: LinkModel,
) -> list[dict[str, Any]]:
    """predicted_us: of a model that was fitted to the profiled batch sizes only."""
    rows = []
    for timed in every:
        ordered = sorted(timed.seconds)
        plan = replace(timed, variant=timed.chosen)
        predicted = exchange_seconds(model, as_measured(layout, plan).counts)
        rows.append(
            {
                **cell,
                "phase": phase,
                "tokens": timed.tokens,
                "variant": timed.variant,
                "quartile_us": round(1e6 * timed.typical_s),
                "median_us": round(1e6 * ordered[len(ordered) // 2]),
                "p90_us": round(1e6 * ordered[9 * len(ordered) // 10]),
                "predicted_us": round(1e6 * predicted),
                "exchanges": len(ordered),
                "chosen": timed.chosen,
            }
        )
    return rows


def summary(cell: dict[str, Any], rows: list[dict[str, Any]], times: ExchangeTimes) -> Any:
    """Of one cell: adaptive against the best fixed plan and against one phase, by batch size."""
    lines = []
    for tokens in sorted({row["tokens"] for row in rows}):
        found = {row["variant"]: row for row in rows if row["tokens"] == tokens}
        auto = found.pop("auto")
        by = {plan: row["quartile_us"] for plan, row in found.items()}
        plans = [plan for plan in by if not plan.endswith(AGAIN)]
        both = {plan: (by[plan] + by[plan + AGAIN]) / 2 for plan in plans}
        best = min(plans, key=lambda plan: both[plan])
        lines.append(
            {
                **cell,
                "tokens": tokens,
                "auto_us": auto["quartile_us"],
                "chosen": auto["chosen"],
                "best": best,
                "best_us": round(both[best]),
                "over_best": round(auto["quartile_us"] / both[best], 3),
                "regret": round(both[auto["chosen"]] / both[best], 3),
                "repeat": round(by[best + AGAIN] / by[best], 3),
                "1pc_us": round(both["1pc"]),
                "faster_than_1pc": round(both["1pc"] / auto["quartile_us"], 2),
                "learned": times.learned[tokens],
            }
        )
    return lines


def facts_of(lines: list[dict[str, Any]], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The claims, counted over all cells so far."""
    errors = [
        abs(row["predicted_us"] / row["quartile_us"] - 1)
        for row in rows
        if row["phase"] == "compared" and row["variant"] != "auto"
    ]
    off = [max(line["repeat"], 1 / line["repeat"]) for line in lines]
    return {
        "cells": len(lines),
        "auto_within_5_percent": sum(line["over_best"] <= 1.05 for line in lines),
        "auto_over_best_median": statistics.median(line["over_best"] for line in lines),
        "chosen_within_5_percent": sum(line["regret"] <= 1.05 for line in lines),
        "chosen_worst": max(line["regret"] for line in lines),
        "best_plan_repeats_within_5_percent": sum(ratio <= 1.05 for ratio in off),
        "model_error": {
            "median": statistics.median(errors),
            "p90": statistics.quantiles(errors, n=10)[8],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="JSON with machine, commit and all figures")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.2, 1.0, 10.0])
    parser.add_argument("--shapes", nargs="+", default=["2A+2E", "2A+2E+2E", "2A+2A+2E+2E"])
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--budget", type=float, default=4.0, help="seconds per batch size")
    parser.add_argument("--flow", type=int, default=0, help="competing TCP connections")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    fits: list[dict[str, Any]] = []
    for rate in options.rates:
        for shape in options.shapes:
            cell = {"gbps": rate, "shape": shape, "flows": options.flow}
            try:
                layout, times = measure(
                    shape, Link(rate), options.batches, options.budget, options.flow
                )
            except HostsUnavailable as error:
                raise SystemExit(f"benchmarks.exchange_adaptive: {error}") from None
            model = fit_timed(layout, times.profiled).model
            found = rows_of(cell, layout, "compared", times.compared, model)
            rows += rows_of(cell, layout, "profiled", times.profiled, model) + found
            lines += summary(cell, found, times)
            fits.append({**cell, "links": times.links})
            print_table(lines[-len(options.batches) :])
            facts = {**facts_of(lines, rows), "hidden": HIDDEN, "dtype": DTYPE, "profile": PROFILE}
            print(json.dumps({name: facts[name] for name in list(facts)[:7]}), flush=True)
            if options.json:
                content = {
                    "benchmark": "exchange_adaptive",
                    **facts,
                    "machine": machine_facts(),
                    "summary": lines,
                    "fits": fits,
                    "rows": rows,
                }
                write_json(options.json, content)


if __name__ == "__main__":
    main()
