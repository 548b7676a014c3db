"""Measured durations on a grid, and what lies between its points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from janus_moe.errors import ConfigError
from janus_moe.planner.latency.arrays import Array, Numbers
from janus_moe.planner.latency.estimate import Confidence
from janus_moe.spec import Spec


class DurationGrid(Spec, frozen=True):
    """Seconds at every combination of one or two sizes.

    axes: ascending sizes.
    values: in row-major order, not falling along any axis.
    """

    axes: tuple[tuple[float, ...], ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.axes) not in (1, 2) or any(len(axis) < 2 for axis in self.axes):
            raise ConfigError("a grid needs one or two axes of at least two sizes each")
        if any(list(axis) != sorted(set(axis)) for axis in self.axes):
            raise ConfigError(f"sizes of a grid must ascend, got {self.axes}")
        if len(self.values) != math.prod(map(len, self.axes)):
            raise ConfigError(f"a grid has {len(self.values)} values for {self.axes}")

    @classmethod
    def measured(
        cls, axes: Sequence[Sequence[float]], measure: Callable[..., float]
    ) -> DurationGrid:
        """measure: (size, ...) -> seconds, called once per combination. More never takes less:
        what noise turned around becomes the middle of levelling upwards and downwards, so that
        neither a slow nor a fast measurement moves all others to its side."""
        shape = tuple(map(len, axes))
        values = np.empty(shape)
        for place in np.ndindex(shape):
            values[place] = measure(*(axis[i] for axis, i in zip(axes, place, strict=True)))
        upwards, downwards = values, values
        for axis in range(len(shape)):
            upwards = np.maximum.accumulate(upwards, axis=axis)
            downwards = np.flip(np.minimum.accumulate(np.flip(downwards, axis), axis=axis), axis)
        values = (upwards + downwards) / 2
        return cls(
            axes=tuple(tuple(map(float, axis)) for axis in axes),
            values=tuple(values.ravel().tolist()),
        )

    def seconds(self, *sizes: Numbers) -> Array:
        """Linear between the points and beyond the last one; the first one below it."""
        grid = np.array(self.values).reshape(tuple(map(len, self.axes)))
        places = [_place(axis, size) for axis, size in zip(self.axes, sizes, strict=True)]
        if len(places) == 1:
            ((low, share),) = places
            return np.asarray(grid[low] + share * (grid[low + 1] - grid[low]), np.float64)
        (i, x), (j, y) = places
        first = grid[i, j] + y * (grid[i, j + 1] - grid[i, j])
        second = grid[i + 1, j] + y * (grid[i + 1, j + 1] - grid[i + 1, j])
        return np.asarray(np.maximum(first + x * (second - first), grid[0, 0]), np.float64)

    def confidence(self, *sizes: float) -> Confidence:
        """measured on a point, interpolated between points, roofline outside."""
        pairs = list(zip(self.axes, sizes, strict=True))
        if all(size in axis for axis, size in pairs):
            return "measured"
        inside = all(axis[0] <= size <= axis[-1] for axis, size in pairs)
        return "interpolated" if inside else "roofline"


def _place(axis: Sequence[float], size: Numbers) -> tuple[NDArray[np.intp], Array]:
    """(index of the point below, share of the way to the next one, above 1 beyond the last)."""
    points = np.asarray(axis, np.float64)
    wanted = np.maximum(np.asarray(size, np.float64), points[0])
    low = np.clip(np.searchsorted(points, wanted, side="right") - 1, 0, len(points) - 2)
    return low, (wanted - points[low]) / (points[low + 1] - points[low])
