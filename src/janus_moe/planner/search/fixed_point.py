"""Little's law: the batch B that a demand lambda keeps under way, B = lambda * TPOT(B).

Section 5 of arXiv 2512.13525: bounded bisection on [1, B_max] of f(B) = B - lambda * TPOT(B);
f(1) >= 0 gives 1, and f(B_max) < 0 means that the demand cannot be met. TPOT must not fall with B.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from janus_moe.planner.latency.arrays import Array, Numbers

ITERATIONS = 40
TOLERANCE = 1e-10
"""Relative; what `fixed_points` stops at."""


def fixed_point(tpot_s: Callable[[float], float], tokens_per_s: float, most: float) -> float | None:
    """The batch; None means that none up to `most` meets the demand. For arrays: `fixed_points`."""
    if most < 1 or most < tokens_per_s * tpot_s(most):
        return None
    if tokens_per_s * tpot_s(1.0) <= 1:
        return 1.0
    low, high = 1.0, most
    for _ in range(ITERATIONS):
        middle = (low + high) / 2
        if middle >= tokens_per_s * tpot_s(middle):
            high = middle
        else:
            low = middle
    return high


def fixed_points(tpot_s: Callable[[Array], Array], tokens_per_s: Numbers, most: Array) -> Array:
    """The same for arrays: batches, nan where no batch up to `most` meets the demand.

    By false position (Illinois) with the bounds of the bisection, which takes a quarter of its
    steps: a search spends most of its time here.
    """
    low, high = np.ones_like(most), np.maximum(most, 1.0)

    def surplus(batch: Array) -> Array:
        return np.asarray(batch - tokens_per_s * tpot_s(batch))

    below, above = surplus(low), surplus(high)
    possible = (most >= 1) & (above >= 0)
    open_ = possible & (below < 0)
    found = np.where(below >= 0, 1.0, high)
    side = np.zeros_like(found)
    for _ in range(2 * ITERATIONS):
        if not open_.any():
            break
        width = np.where(open_, above - below, 1.0)
        place = np.where(open_, high - above * (high - low) / width, found)
        value = surplus(place)
        enough = value >= 0
        moved = np.abs(place - found) <= TOLERANCE * place
        done = open_ & (moved | (value == 0) | (high - low <= TOLERANCE * high))
        found = np.where(open_, place, found)
        # Halving the value at the bound that stays twice keeps it from staying for ever.
        below = np.where(enough, np.where(side > 0, below / 2, below), value)
        above = np.where(enough, value, np.where(side < 0, above / 2, above))
        low, high = np.where(enough, low, place), np.where(enough, place, high)
        side = np.where(enough, 1.0, -1.0)
        open_ = open_ & ~done
    return np.where(possible, found, np.nan)


def largest_batches(
    tpot_s: Callable[[Array], Array], limit_s: float, most: Array, iterations: int = 24
) -> Array:
    """The largest batch up to `most` whose step takes no more than `limit_s`; nan: not even 1."""
    top = np.maximum(most, 1.0)
    low, high = np.ones_like(top), top
    possible = (most >= 1) & (tpot_s(low) <= limit_s)
    whole = tpot_s(top) <= limit_s
    for _ in range(iterations):
        middle = (low + high) / 2
        fits = tpot_s(middle) <= limit_s
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return np.where(possible, np.where(whole, top, low), np.nan)
