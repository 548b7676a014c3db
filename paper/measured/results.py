"""Reads committed results of benchmarks and of the paper's programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
BENCHMARKS, PAPER = ROOT / "benchmarks" / "results", ROOT / "paper" / "results"

Rows = list[dict[str, Any]]


def read(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return content


def select(rows: Rows, **wanted: Any) -> Rows:
    """Keeps the rows that have all these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]
