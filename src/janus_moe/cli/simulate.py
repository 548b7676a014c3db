"""`janus simulate routing TRACE`: a recorded trace through every policy and placement.

`janus simulate trace` is in `simulate_trace`.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from janus_moe.cli import simulate_trace
from janus_moe.errors import ConfigError
from janus_moe.planner.simulation.routing_replay import (
    ExpertPoolSize,
    RoutingResult,
    simulate_routing,
)
from janus_moe.policy.activation import Policy
from janus_moe.policy.placement import PlacementMethod
from janus_moe.policy.routing_trace import RoutingTrace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to replay, and on which pools."""
    kinds = parser.add_subparsers(dest="kind", required=True)
    routing = kinds.add_parser("routing", help="activated experts of the busiest instance")
    routing.add_argument("trace", type=Path, help="file that `--record-routing` wrote")
    routing.add_argument("--expert-instances", type=int, nargs="+", default=[2, 4, 8])
    routing.add_argument(
        "--redundancy", type=float, default=1.25, help="slots per expert (default: 1.25)"
    )
    routing.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    routing.add_argument(
        "--policies", nargs="+", choices=get_args(Policy), default=list(get_args(Policy))
    )
    routing.add_argument(
        "--placements",
        nargs="+",
        choices=get_args(PlacementMethod),
        default=list(get_args(PlacementMethod)),
    )
    routing.add_argument("--batches", type=int, default=32, help="sampled batches per cell")
    routing.add_argument("--seed", type=int, default=0)
    routing.add_argument("--json", type=Path, help="write all figures")
    routing.add_argument("--plot", type=Path, help="write a picture (needs matplotlib)")
    simulate_trace.add_arguments(
        kinds.add_parser("trace", help="requests through deployments that scale")
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints one table per pool."""
    if arguments.kind == "trace":
        return simulate_trace.run(arguments)
    trace = RoutingTrace.load(arguments.trace)
    cells = simulate_routing(
        trace,
        [
            _pool(count, trace.num_experts, arguments.redundancy)
            for count in arguments.expert_instances
        ],
        arguments.batch_sizes,
        list(itertools.product(arguments.policies, arguments.placements)),
        arguments.batches,
        arguments.seed,
    )
    console = Console()
    console.print(
        f"{trace.num_layers} layers, {trace.num_experts} experts, top-{trace.top_k}, "
        f"{trace.num_tokens} tokens in {len(trace.batch_sizes)} batches; placements planned on the "
        "first half, judged on the second. Activated experts of the busiest instance:"
    )
    for count in arguments.expert_instances:
        console.print(_table(count, [cell for cell in cells if cell.num_instances == count]))
    if arguments.json:
        arguments.json.write_text(json.dumps([c._asdict() for c in cells], indent=1) + "\n")
    if arguments.plot:
        _plot(cells, arguments.plot)
    return 0


def _pool(num_instances: int, num_experts: int, redundancy: float) -> ExpertPoolSize:
    if not redundancy >= 1.0:
        raise ConfigError(f"--redundancy must be at least 1 slot per expert, got {redundancy}")
    redundant = round(num_experts * (redundancy - 1.0))
    return ExpertPoolSize(num_instances, min(redundant, (num_instances - 1) * num_experts))


def _table(num_instances: int, cells: Sequence[RoutingResult]) -> Table:
    sizes = sorted({cell.batch_size for cell in cells})
    table = Table(title=f"{num_instances} expert instances", title_justify="left")
    table.add_column("policy")
    table.add_column("placement")
    for size in sizes:
        table.add_column(f"B={size}", justify="right")
    even = {cell.batch_size: cell.even for cell in cells}
    table.add_row("even split", "", *(f"{even[size]:.2f}" for size in sizes), style="dim")
    found: dict[tuple[str, str], dict[int, float]] = {}
    for cell in cells:
        found.setdefault((cell.policy, cell.method), {})[cell.batch_size] = cell.max_activated
    for (policy, method), row in found.items():
        table.add_row(policy, method, *(f"{row[size]:.2f}" for size in sizes))
    return table


def _plot(cells: Sequence[RoutingResult], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("--plot needs matplotlib: pip install 'janus-moe[bench]'") from None
    counts = sorted({cell.num_instances for cell in cells})
    figure: Any = Figure(figsize=(5 * len(counts), 4), layout="constrained")
    axes: Any = figure.subplots(1, len(counts), squeeze=False)[0]
    for axis, count in zip(axes, counts, strict=True):
        own = [cell for cell in cells if cell.num_instances == count]
        for policy, method in dict.fromkeys((cell.policy, cell.method) for cell in own):
            line = [c for c in own if (c.policy, c.method) == (policy, method)]
            label = f"{policy} on {method}"
            axis.plot(
                [c.batch_size for c in line], [c.max_activated / c.even for c in line], label=label
            )
        axis.set_xscale("log", base=2)
        axis.set_xlabel("tokens per batch")
        axis.set_ylabel("busiest instance over an even split")
        axis.set_title(f"{count} expert instances")
    axes[-1].legend(fontsize="x-small", loc="upper right")
    figure.savefig(path, dpi=150)
