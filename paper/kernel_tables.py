"""Reads tables of measured kernels, from parquet or CSV, into columns."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Columns = dict[str, NDArray[np.str_]]


def read_table(folder: Path, name: str) -> Columns:
    """Columns of `folder/name.parquet` or `folder/name.csv` as text."""
    parquet, text = folder / f"{name}.parquet", folder / f"{name}.csv"
    if text.exists():
        with text.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        columns = zip(*rows[1:], strict=True)
        return {key: np.array(column) for key, column in zip(rows[0], columns, strict=True)}
    if not parquet.exists():
        raise SystemExit(f"neither {parquet} nor {text} exists; --tables names the folder")
    try:
        from pyarrow.parquet import read_table as read_parquet
    except ImportError:
        raise SystemExit(
            "reading parquet needs pyarrow: pip install 'janus-moe[bench]', or convert to CSV"
        ) from None
    table = read_parquet(parquet)
    return {key: np.array(table[key].to_pylist(), str) for key in table.column_names}


def numbers(columns: Columns, key: str) -> NDArray[np.float64]:
    """A column as numbers."""
    return columns[key].astype(np.float64)
