"""Draws a figure's data to a file (needs matplotlib)."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import matplotlib  # type: ignore[import-not-found,unused-ignore]

matplotlib.use("Agg")
from benchmarks.figures.figure import Data
from matplotlib import pyplot as plt  # type: ignore[import-not-found,unused-ignore]


def draw(module: ModuleType, data: Data, path: Path) -> None:
    rows, columns = module.PANELS
    size = (max(6.0, 4.1 * columns), 3.6 * rows if rows > 1 else 3.9)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False)
    axes = list(grid.flat)
    for axis in axes:
        axis.grid(alpha=0.25)
    module.plot(data, axes)
    figure.suptitle(module.TITLE, fontsize=11)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, metadata={"Software": ""})
    plt.close(figure)
