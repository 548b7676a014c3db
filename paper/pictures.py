"""Pictures of results (needs matplotlib)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def picture(
    path: Path,
    rows: int = 1,
    columns: int = 1,
    *,
    size: tuple[float, float],
    bottom: float = 0.0,
    dpi: int = 110,
    **sharing: Any,
) -> Iterator[tuple[Any, Any]]:
    """Gives (figure, axes [rows, columns]) to draw on, and writes them to `path` afterwards.

    size: inches.
    bottom: part of the height that is left free under the axes, for a legend.
    sharing: `sharex` and `sharey` of matplotlib's `subplots`.
    """
    from matplotlib.figure import Figure  # no window, and nothing to close

    figure = Figure(figsize=size)
    yield figure, figure.subplots(rows, columns, squeeze=False, **sharing)
    figure.tight_layout(rect=(0, bottom, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, metadata={"Software": ""})  # no version: equal data, equal bytes


def legend_below(figure: Any, axes: Any, columns: int, fontsize: int = 9) -> None:
    """One legend for all axes, of the lines of one of them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="lower center", ncol=columns, fontsize=fontsize, frameon=False
    )
