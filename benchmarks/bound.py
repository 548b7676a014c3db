"""How close `exact` on `janus` comes to what no scheduler and no placement can go below.

    python -m benchmarks.bound [FILES.json]

Every activated expert is read at least once, by one instance. So the busiest instance reads
ceil(activated / instances) or more, whatever the placement and the scheduler: the bound, a mean
over batches and layers. Where the bound itself is less than 25 % below `token-split` on `eplb`,
nothing reaches 25 %. Files: what `benchmarks.placement` and `benchmarks.recorded_routing` wrote.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.support.report import print_table

TARGET = 0.25
FILES = [Path(f"benchmarks/results/{name}.json") for name in ("placement", "recorded_routing")]


def bound_rows(
    grid: Sequence[Mapping[str, Any]], replication: float = 1.25, batch: int = 64
) -> list[dict[str, Any]]:
    """One row per kind and pool. reached: whether the target is, "impossible": not even by the
    bound."""
    return [
        bound_row(row)
        for row in grid
        if row["replication"] == replication and row["batch"] == batch
    ]


def bound_row(row: Mapping[str, Any]) -> dict[str, Any]:
    bound, max_activated = row["even"], row["a_max"]
    ours, theirs = max_activated["exact/janus"], max_activated["token-split/eplb"]
    below, possible = 1 - ours / theirs, 1 - bound / theirs
    reached = "yes" if below >= TARGET else "no" if possible >= TARGET else "impossible"
    return {
        "kind": row["kind"],
        "instances": row["instances"],
        "bound": bound,
        "exact/janus": ours,
        "over bound": ours / bound - 1,
        "token-split/eplb": theirs,
        "below it": below,
        "bound below it": possible,
        "25 % reached": reached,
    }


def print_bounds(rows: Sequence[Mapping[str, Any]]) -> None:
    shares = ("over bound", "below it", "bound below it")
    print("Against the bound, 1.25 slots per expert, B = 64")
    print_table(
        [{**row, **{name: f"{max(0.0, row[name]):.1%}" for name in shares}} for row in rows]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", type=Path, nargs="*", default=FILES)
    for path in parser.parse_args().files:
        print(path)
        print_bounds(bound_rows(json.loads(path.read_text(encoding="utf-8"))["grid"]))


if __name__ == "__main__":
    main()
