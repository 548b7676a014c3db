"""Draws a figure's data to a file (needs matplotlib)."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from paper.figure import Data
from paper.pictures import picture


def draw(module: ModuleType, data: Data, path: Path) -> None:
    rows, columns = module.PANELS
    size = (max(6.0, 4.1 * columns), 3.6 * rows if rows > 1 else 3.9)
    with picture(path, rows, columns, size=size, dpi=80) as (figure, grid):
        for axis in grid.flat:
            axis.grid(alpha=0.25)
        module.plot(data, list(grid.flat))
        figure.suptitle(module.TITLE, fontsize=11)
