"""The adaptive exchange beside every fixed plan, alone and without compute, between hosts.

    python -m benchmarks.exchange [--json FILE.json] [--rates 0.2 1 10]

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
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.support.exchange_runs import DTYPE, HIDDEN, compare_plans, layout_of
from benchmarks.support.hosts import Link
from benchmarks.support.program import Result, flag, main
from benchmarks.support.report import print_table
from msgspec.structs import replace

from janus_moe.planner.latency.link_fit import exchange_seconds
from janus_moe.planner.latency.links import LinkModel
from janus_moe.profiling.exchange import AGAIN
from janus_moe.profiling.exchange_times import ExchangeTimes, Timed, as_measured, fit_timed
from janus_moe.transport import ExchangeLayout

PROFILE = (2, 8, 32, 128, 512)
BATCHES = (4, 16, 64, 256, 512)


def measure(options: argparse.Namespace) -> Result:
    rows: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    fits: list[dict[str, Any]] = []
    for rate in options.rates:
        for shape in options.shapes:
            cell = {"gbps": rate, "shape": shape}
            layout = layout_of(shape, max((*options.batches, *PROFILE)))
            link, batches = Link(rate), options.batches
            times = compare_plans(layout, link, batches, PROFILE, options.budget)
            model = fit_timed(layout, times.profiled).model
            found = rows_of(cell, layout, "compared", times.compared, model)
            rows += rows_of(cell, layout, "profiled", times.profiled, model) + found
            lines += summary(cell, found, times)
            fits.append({**cell, "links": times.links})
            print_table(lines[-len(batches) :])
    told = {"hidden": HIDDEN, "dtype": DTYPE, "profile": PROFILE}
    return {**facts_of(lines, rows), **told, "summary": lines, "fits": fits, "timed": rows}


def rows_of(
    cell: dict[str, Any],
    layout: ExchangeLayout,
    phase: str,
    every: Sequence[Timed],
    model: LinkModel,
) -> list[dict[str, Any]]:
    """Makes a row of each variant and batch size.

    model: fitted to the profiled batch sizes only.
    """
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
    """Compares `auto` with the best fixed plan and with one phase, by batch size of one cell."""
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
    """Counts the claims over all cells."""
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


if __name__ == "__main__":
    main(
        __doc__,
        measure,
        flag("--rates", type=float, nargs="+", default=[0.2, 1.0, 10.0], help="Gb/s"),
        flag("--shapes", nargs="+", default=["2A+2E", "2A+2E+2E", "2A+2A+2E+2E"]),
        flag("--batches", type=int, nargs="+", default=list(BATCHES)),
        flag("--budget", type=float, default=4.0, help="seconds per batch size"),
    )
