"""Claims about the activated experts of the busiest instance, and the bound that nothing beats.

Every activated expert is read at least once, by one instance. So the busiest instance reads
ceil(activated / instances) or more, whatever the placement and the scheduler. Where that bound is
less than 25 % below `token-split` on `eplb`, nothing reaches 25 %.

A row of a grid has kind, instances, replication, batch, the bound (`even`) and `a_max`, which maps
`policy/placement` to a mean. Where routing comes from is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from benchmarks.support.report import print_table
from numpy.typing import NDArray

from janus_moe.policy.activation import Policy
from janus_moe.policy.placement import PlacementMethod
from janus_moe.policy.synthetic import SyntheticKind

KINDS: tuple[SyntheticKind, ...] = get_args(SyntheticKind)
METHODS: tuple[PlacementMethod, ...] = get_args(PlacementMethod)
POLICIES: tuple[Policy, ...] = get_args(Policy)
TARGET = 0.25
OURS, THEIRS, PAPERS = "exact/janus", "token-split/eplb", "aebs/coactivation"

Ids = NDArray[np.int32]
Row = Mapping[str, Any]


def even_split(batches: Sequence[Ids], pool: int) -> float:
    """The bound is returned: mean ceil(activated / instances).

    batches: [tokens, top_k] int32 each, expert ids.
    pool: expert instances.
    """
    return float(np.mean([-(-len(np.unique(ids)) // pool) for ids in batches]))


def claims(grid: Sequence[Row]) -> list[dict[str, Any]]:
    """Each claim has its target, what was measured and the cells that miss it."""
    middle = [r for r in grid if r["replication"] >= 1.25 and 16 <= r["batch"] <= 256]
    pairs = [(r["a_max"][OURS], r["a_max"][PAPERS]) for r in middle]
    worse = [cell(r) for r, (ours, papers) in zip(middle, pairs, strict=True) if ours > papers]
    bounds = bound_rows(grid)
    below = [row["below it"] for row in bounds]
    possible = [row for row in bounds if row["25 % reached"] != "impossible"]
    return [
        {
            "claim": f"{OURS} <= {PAPERS}, replication >= 1.25, B 16..256",
            "target": "all cells",
            "measured": f"{len(pairs) - len(worse)} of {len(pairs)}",
            "misses": worse,
        },
        {
            "claim": "... and lower",
            "target": "3/4 of cells",
            "measured": f"{np.mean([ours < papers for ours, papers in pairs]):.3f}",
            "misses": [],
        },
        {
            "claim": f"{OURS} below {THEIRS}, replication 1.25, B 64, where the bound allows 25 %",
            "target": ">= 25 %",
            "measured": f"{sum(row['25 % reached'] == 'yes' for row in possible)} of "
            f"{len(possible)}; all cells: {min(below):.1%} to {max(below):.1%}",
            "misses": [cell(r) for r in at_target(grid) if bound_row(r)["25 % reached"] == "no"],
        },
    ]


def cell(row: Row) -> str:
    figures = {"even": row["even"]} | {name: row["a_max"][name] for name in (OURS, PAPERS, THEIRS)}
    where = f"{row['kind']} n_e={row['instances']} x{row['replication']} B={row['batch']}"
    return f"{where}: " + ", ".join(f"{name} {value:.2f}" for name, value in figures.items())


def print_claims(verdicts: Sequence[Row], title: str) -> None:
    print_table([{key: v[key] for key in ("claim", "target", "measured")} for v in verdicts], title)
    for miss in (miss for verdict in verdicts for miss in verdict["misses"]):
        print(f"    {miss}")


def at_target(grid: Sequence[Row]) -> list[Row]:
    """The cells of the 25 % claim."""
    return [row for row in grid if row["replication"] == 1.25 and row["batch"] == 64]


def bound_rows(grid: Sequence[Row]) -> list[dict[str, Any]]:
    return [bound_row(row) for row in at_target(grid)]


def bound_row(row: Row) -> dict[str, Any]:
    """One cell against the bound; "impossible" says that not even the bound reaches the target."""
    bound, ours, theirs = row["even"], row["a_max"][OURS], row["a_max"][THEIRS]
    below, possible = 1 - ours / theirs, 1 - bound / theirs
    return {
        "kind": row["kind"],
        "instances": row["instances"],
        "bound": bound,
        OURS: ours,
        "over bound": ours / bound - 1,
        THEIRS: theirs,
        "below it": below,
        "bound below it": possible,
        "25 % reached": "yes" if below >= TARGET else "no" if possible >= TARGET else "impossible",
    }


def print_bounds(grid: Sequence[Row]) -> None:
    shares = ("over bound", "below it", "bound below it")
    print_table(
        [
            {**row, **{name: f"{max(0.0, row[name]):.1%}" for name in shares}}
            for row in bound_rows(grid)
        ],
        "Against the bound, 1.25 slots per expert, B = 64",
    )
