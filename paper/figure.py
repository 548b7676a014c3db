"""What a figure is; knows neither files nor a particular figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

Data = dict[str, Any]
Axes = Any  # matplotlib is optional


class Comparison(NamedTuple):
    """A statement of the paper stands beside ours.

    reason: why they differ; empty where they agree.
    """

    what: str
    paper: str
    ours: str
    reason: str = ""


class Figure(Protocol):
    """A module of this package has this form.

    NUMBER: in the paper, or a name for a figure that the paper does not have.
    BASIS: what is measured, fitted, modelled or synthetic.
    PANELS: rows and columns of axes.
    """

    NUMBER: str
    TITLE: str
    BASIS: str
    PANELS: tuple[int, int]

    @staticmethod
    def data(seed: int = 0) -> Data:
        """Plain lists, numbers and strings; equal seeds give equal values."""
        ...

    @staticmethod
    def plot(data: Data, axes: Sequence[Axes]) -> None:
        """Draws on the panels, row by row."""
        ...

    @staticmethod
    def compare(data: Data) -> list[Comparison]: ...


def rounded(value: Any) -> Any:
    """Floats to six digits, so that the last bits of a machine's arithmetic do not show."""
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value
