"""Little's law: the batch B that a demand lambda keeps under way, B = lambda * TPOT(B).

Section 5 of arXiv 2512.13525: bounded bisection on [1, B_max] of f(B) = B - lambda * TPOT(B);
f(1) >= 0 gives 1, and f(B_max) < 0 means that the demand cannot be met. TPOT must not fall with B.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from janus_moe.perf.arrays import Array, Numbers

ITERATIONS = 40


def fixed_point(tpot_s: Callable[[float], float], tokens_per_s: float, most: float) -> float | None:
    """The batch, or None where no batch up to `most` keeps up. Numbers; see `fixed_points`."""
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
    """The same for arrays: batches, nan where no batch up to `most` keeps up."""
    top = np.maximum(most, 1.0)
    possible = (most >= 1) & (top >= tokens_per_s * tpot_s(top))
    low, high = np.ones_like(top), top
    at_least_one = tokens_per_s * tpot_s(low) > 1
    for _ in range(ITERATIONS):
        middle = (low + high) / 2
        enough = middle >= tokens_per_s * tpot_s(middle)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(possible, np.where(at_least_one, high, 1.0), np.nan)


def largest_batches(
    tpot_s: Callable[[Array], Array], limit_s: float, most: Array, iterations: int = ITERATIONS
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
