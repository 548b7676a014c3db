"""Claims about comparing with the lower bound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.support.activation import bound_row, bound_rows

FILES = [Path(f"benchmarks/results/{name}.json") for name in ("placement", "recorded_routing")]


def cell(bound: float, ours: float, theirs: float, **changes: Any) -> dict[str, Any]:
    max_activated = {"exact/janus": ours, "token-split/eplb": theirs}
    row = {"kind": "zipf", "instances": 8, "replication": 1.25, "batch": 64}
    return row | {"even": bound, "a_max": max_activated} | changes


@pytest.mark.parametrize(
    ("bound", "ours", "reached"),
    [(7.0, 7.5, "yes"), (7.0, 7.6, "no"), (7.6, 7.6, "impossible"), (7.6, 9.0, "impossible")],
)
def test_a_miss_is_a_miss_only_where_the_bound_allows_more(
    bound: float, ours: float, reached: str
) -> None:
    row = bound_row(cell(bound, ours, 10.0))
    assert row["25 % reached"] == reached
    assert row["over bound"] == pytest.approx(ours / bound - 1)
    assert row["below it"] == pytest.approx(1 - ours / 10)


def test_only_the_cells_of_the_claim_are_shown() -> None:
    others = [cell(1, 1, 2, batch=32), cell(1, 1, 2, replication=1.5)]
    assert [row["kind"] for row in bound_rows([*others, cell(1, 1, 2, kind="topics")])] == [
        "topics"
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recorded_results_reach_the_target_wherever_it_can_be(path: Any) -> None:
    rows = bound_rows(json.loads(path.read_text(encoding="utf-8"))["grid"])
    assert len(rows) >= 20
    assert all(row["25 % reached"] != "no" for row in rows)
    assert all(row["over bound"] > -1e-4 for row in rows)  # the file rounds
