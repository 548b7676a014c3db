"""`janus simulate routing TRACE`: a recorded trace through every policy and placement."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
from rich.table import Table

from janus_moe.cli.extras import require_extra
from janus_moe.cli.flags import Command, flag
from janus_moe.cli.outputs import ReportConsole, write_text
from janus_moe.planner.simulation.routing_replay import (
    ExpertPoolSize,
    RoutingResult,
    simulate_routing,
)
from janus_moe.policy.activation import Policy
from janus_moe.policy.placement import PlacementMethod
from janus_moe.policy.routing_trace import RoutingTrace

LARGEST = 2**16
"""Of a pool and of a batch."""
LABELS_WIDTH, COLUMN_WIDTH = 32, 9
"""Columns of a terminal that policy and placement, and each batch size, take up at most."""


class SimulateRoutingOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is replayed, on which pools, and where the figures go."""

    trace: Annotated[Path, flag("file that `--record-routing` wrote", positional=True)]
    expert_instances: Annotated[
        tuple[int, ...], flag("sizes of the expert pool", at_least=1, at_most=LARGEST)
    ] = (2, 4, 8)
    redundancy: Annotated[float, flag("slots per expert", at_least=1)] = 1.25
    batch_sizes: Annotated[tuple[int, ...], flag("tokens", at_least=1, at_most=LARGEST)] = (
        1,
        4,
        16,
        64,
        256,
    )
    policies: Annotated[tuple[Policy, ...], flag("how activated experts are given to replicas")] = (
        get_args(Policy)
    )
    placements: Annotated[tuple[PlacementMethod, ...], flag("where replicas are")] = get_args(
        PlacementMethod
    )
    batches: Annotated[int, flag("sampled batches per cell", at_least=1)] = 32
    seed: Annotated[int, flag("of the sampling", at_least=0)] = 0
    json: Annotated[Path | None, flag("write all figures there", writes="file")] = None
    plot: Annotated[
        Path | None, flag("write a picture there (needs matplotlib)", writes="file")
    ] = None


def run(options: SimulateRoutingOptions) -> int:
    """Prints one table per pool."""
    if options.plot:
        require_extra("matplotlib", "--plot")
    trace = RoutingTrace.load(options.trace)
    cells = simulate_routing(
        trace,
        [_pool(count, trace.num_experts, options.redundancy) for count in options.expert_instances],
        options.batch_sizes,
        list(itertools.product(options.policies, options.placements)),
        options.batches,
        options.seed,
    )
    console = ReportConsole()
    console.print(
        f"{trace.num_layers} layers, {trace.num_experts} experts, top-{trace.top_k}, "
        f"{trace.num_tokens} tokens in {len(trace.batch_sizes)} batches; placements planned on the "
        "first half, judged on the second. Activated experts of the busiest instance:"
    )
    for count in options.expert_instances:
        own = [cell for cell in cells if cell.num_instances == count]
        shown = max(1, (console.width - LABELS_WIDTH) // COLUMN_WIDTH)
        for first in range(0, len(options.batch_sizes), shown):
            sizes = options.batch_sizes[first : first + shown]
            console.print(_table(count, [cell for cell in own if cell.batch_size in sizes]))
    if options.json:
        write_text(options.json, json.dumps([c._asdict() for c in cells], indent=1) + "\n")
    if options.plot:
        _plot(cells, options.plot)
    return 0


def _pool(num_instances: int, num_experts: int, redundancy: float) -> ExpertPoolSize:
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
    from matplotlib.figure import Figure

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


COMMAND = Command(options=(SimulateRoutingOptions,), run=run)
