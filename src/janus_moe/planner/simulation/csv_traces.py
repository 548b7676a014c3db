"""Public traces in CSV: Azure's LLM inference traces and BurstGPT.

Blocks of rows are converted column by column; only a block that does not convert is gone through
again, value by value, to say where it is wrong.

Azure: https://github.com/Azure/AzurePublicDataset (2023 and 2024, CC-BY-4.0)
BurstGPT: https://github.com/HPMLL/BurstGPT (CC-BY-4.0)
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from janus_moe.errors import ConfigError
from janus_moe.planner.simulation.workload import RequestTrace

BLOCK_ROWS = 1 << 16
EPOCH = datetime(1970, 1, 1)
EPOCH_UTC = EPOCH.replace(tzinfo=UTC)


class Column(NamedTuple):
    """A column that is read.

    convert: from its text; raises ValueError.
    expected: for the error that follows.
    """

    title: str
    convert: Callable[[str], float]
    expected: str


class CsvFormat(NamedTuple):
    arrival: Column
    prompt: Column
    output: Column

    @property
    def titles(self) -> tuple[str, str, str]:
        return self.arrival.title, self.prompt.title, self.output.title


def _instant(text: str) -> float:
    """Seconds since 1970; without a time zone it is UTC."""
    moment = datetime.fromisoformat(text)
    since = moment - (EPOCH if moment.tzinfo is None else EPOCH_UTC)
    return since.total_seconds()


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e12:
        raise ValueError
    return value


def _tokens(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 40:
        raise ValueError
    return value


COUNT = "a whole number of tokens, 0 or more"

AZURE = CsvFormat(
    Column("TIMESTAMP", _instant, "a time such as 2023-11-16 18:17:03.979960"),
    Column("ContextTokens", _tokens, COUNT),
    Column("GeneratedTokens", _tokens, COUNT),
)
BURSTGPT = CsvFormat(
    Column("Timestamp", _seconds, "seconds since the start, 0 or more"),
    Column("Request tokens", _tokens, COUNT),
    Column("Response tokens", _tokens, COUNT),
)


def load_csv(path: Path, layout: CsvFormat) -> RequestTrace:
    """Columns may come in any order and others may be there; the header names them."""
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = csv.reader(file)
        try:
            places = _places(path, layout, next(rows, []))
            blocks = list(_blocks(path, layout, places, rows))
        except csv.Error as error:
            raise ConfigError(f"{path}, line {rows.line_num}: {error}") from None
    if not blocks:
        raise ConfigError(f"{path}: the trace has a header and no rows")
    arrival, prompt, output = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return RequestTrace.of(path.stem, arrival, prompt.astype(np.int64), output.astype(np.int64))


def _places(path: Path, layout: CsvFormat, header: Sequence[str]) -> list[int]:
    titles = [title.strip() for title in header]
    missing = [title for title in layout.titles if title not in titles]
    if missing:
        raise ConfigError(
            f"{path}, line 1: expected the columns {', '.join(layout.titles)}; "
            f"{', '.join(missing)} is missing from {', '.join(titles)[:200] or 'an empty line'}"
        )
    return [titles.index(title) for title in layout.titles]


def _blocks(
    path: Path, layout: CsvFormat, places: Sequence[int], rows: Iterator[list[str]]
) -> Iterator[tuple[NDArray[np.float64], ...]]:
    """[rows] per column; the line after the header is number 2."""
    first_line = 2
    while block := list(islice(rows, BLOCK_ROWS)):
        filled = [row for row in block if row]
        try:
            yield tuple(
                np.fromiter((column.convert(row[place]) for row in filled), np.float64, len(filled))
                for column, place in zip(layout, places, strict=True)
            )
        except (ValueError, IndexError, OverflowError):
            _point_out(path, layout, places, block, first_line)
        first_line += len(block)


def _point_out(
    path: Path,
    layout: CsvFormat,
    places: Sequence[int],
    block: Sequence[Sequence[str]],
    first_line: int,
) -> None:
    for line, row in enumerate(block, first_line):
        for column, place in zip(layout, places, strict=True) if row else ():
            if place >= len(row):
                raise ConfigError(
                    f"{path}, line {line}: column {column.title} is missing; the row has "
                    f"{len(row)} values; expected {column.expected}"
                )
            try:
                column.convert(row[place])
            except (ValueError, OverflowError):
                raise ConfigError(
                    f"{path}, line {line}, column {column.title}: expected {column.expected}, "
                    f"got {row[place][:60]!r}"
                ) from None
    raise AssertionError("the block did not convert, yet every value of it does")
