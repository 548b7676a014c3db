"""Sets of a batch's rows, and where their members lie in a buffer that holds them packed.

Rows have global numbers: those of attention instance 0 first, then of 1, and so on. A buffer
holds a set in ascending order. `RowRanges` are a few ranges (gating on the expert side),
`RowIndices` are listed one by one (gating on the attention side).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Index = range | Ids  # places in a buffer; a range where they are contiguous
RowRange = tuple[int, int]


@dataclass(frozen=True)
class RowRanges:
    """A few ranges of rows.

    spans: ascending, disjoint, non-empty [start, stop) of global rows.
    """

    spans: tuple[RowRange, ...]

    @classmethod
    def of(cls, spans: list[RowRange] | tuple[RowRange, ...]) -> RowRanges:
        """Leaves out empty spans and joins those that touch; `spans` must ascend."""
        joined: list[RowRange] = []
        for start, stop in spans:
            if start == stop:
                continue
            if joined and joined[-1][1] == start:
                start = joined.pop()[0]
            joined.append((start, stop))
        return cls(tuple(joined))

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.spans)

    def part(self, first: int, last: int) -> RowRanges:
        """Its rows `first` to `last` (exclusive), by place."""
        parts, place = [], 0
        for start, stop in self.spans:
            low, high = max(first - place, 0), min(last - place, stop - start)
            if low < high:
                parts.append((start + low, start + high))
            place += stop - start
        return RowRanges(tuple(parts))

    def within(self, other: RowRanges) -> RowRanges:
        """The rows that are in both."""
        return RowRanges(tuple((start, stop) for start, stop, _, _ in _common(self, other)))


@dataclass(frozen=True, eq=False)
class RowIndices:
    """Rows listed one by one.

    ids: [rows] int64, global rows, ascending, each once.
    """

    ids: Ids

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, RowIndices) and np.array_equal(self.ids, other.ids)

    def __hash__(self) -> int:
        return hash(self._digest)

    @cached_property
    def _digest(self) -> bytes:
        return self.ids.tobytes()

    def __len__(self) -> int:
        return len(self.ids)

    def within(self, spans: RowRanges) -> RowIndices:
        edges = [np.searchsorted(self.ids, span) for span in spans.spans]
        parts = [self.ids[start:stop] for start, stop in edges]
        return RowIndices(np.concatenate(parts) if parts else self.ids[:0])


RowSet = RowRanges | RowIndices


def overlap(target: RowSet, source: RowSet) -> list[tuple[Index, Index]]:
    """Runs of (places in target, places in source) of the rows that are in both."""
    if isinstance(target, RowRanges) and isinstance(source, RowRanges):
        return [
            (range(t, t + stop - start), range(s, s + stop - start))
            for start, stop, t, s in _common(target, source)
        ]
    left, right = _ids(target), _ids(source)
    _, places, origins = np.intersect1d(left, right, assume_unique=True, return_indices=True)
    return [(_compact(places), _compact(origins))] if len(places) else []


def _common(left: RowRanges, right: RowRanges) -> list[tuple[int, int, int, int]]:
    """(start, stop, place in left, place in right) of every run that is in both."""
    runs = []
    left_place = 0
    for left_start, left_stop in left.spans:
        right_place = 0
        for right_start, right_stop in right.spans:
            start, stop = max(left_start, right_start), min(left_stop, right_stop)
            if start < stop:
                places = (left_place + start - left_start, right_place + start - right_start)
                runs.append((start, stop, *places))
            right_place += right_stop - right_start
        left_place += left_stop - left_start
    return runs


def _ids(rows: RowSet) -> Ids:
    if isinstance(rows, RowIndices):
        return rows.ids
    parts = [np.arange(start, stop) for start, stop in rows.spans]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _compact(places: Ids) -> Index:
    first, last = int(places[0]), int(places[-1])
    return range(first, last + 1) if last - first + 1 == len(places) else places
