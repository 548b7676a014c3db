"""Throughput per GPU against speed per user: in characters, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_moe.planner.search.pareto import FrontierPoint

WIDTH, HEIGHT = 60, 12
MARKS = "o*"


def text_frontiers(frontiers: Mapping[str, Sequence[FrontierPoint]]) -> str:
    """Returns a picture in characters; the later of two marks in one place is shown."""
    points = [point for own in frontiers.values() for point in own]
    if not points:
        return ""
    right = max(point.tokens_per_s_per_user for point in points)
    top = max(point.tokens_per_s_per_gpu for point in points)
    canvas = [[" "] * (WIDTH + 1) for _ in range(HEIGHT + 1)]
    for mark, own in zip(MARKS, frontiers.values(), strict=True):
        for point in own:
            column = round(WIDTH * point.tokens_per_s_per_user / right)
            row = HEIGHT - round(HEIGHT * point.tokens_per_s_per_gpu / top)
            canvas[row][column] = mark
    legend = ", ".join(f"{mark} {name}" for mark, name in zip(MARKS, frontiers, strict=True))
    lines = [f"tokens/s per GPU, any batch: {legend}"]
    for row, cells in enumerate(canvas):
        label = f"{top * (HEIGHT - row) / HEIGHT:,.0f}" if row % 4 == 0 else ""
        lines.append(f"{label:>9} |{''.join(cells).rstrip()}")
    axis = f"{0:<{WIDTH // 2}}{right / 2:<{WIDTH // 2}.0f}{right:.0f}"
    lines += [" " * 10 + "+" + "-" * WIDTH, " " * 11 + axis, " " * 11 + "tokens/s per user"]
    return "\n".join(lines)


def plot_frontiers(frontiers: Mapping[str, Sequence[FrontierPoint]], path: Path) -> bool:
    """Writes a picture; returns False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure: Any = Figure(figsize=(7, 4.5), layout="constrained")
    axis: Any = figure.subplots()
    for name, own in frontiers.items():
        speed = [point.tokens_per_s_per_user for point in own]
        axis.plot(speed, [point.tokens_per_s_per_gpu for point in own], marker=".", label=name)
    axis.set_xlabel("tokens/s per user")
    axis.set_ylabel("tokens/s per GPU")
    axis.set_ylim(bottom=0)
    axis.legend()
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    return True
