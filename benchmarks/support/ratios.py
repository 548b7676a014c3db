"""The ratio of two things that were measured in turns, with what chance alone may do to it.

What was measured is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 4000


class Ratio(NamedTuple):
    """A ratio over pairs of turns.

    median: of the pairs' ratios.
    low, high: bounds of its 95 % bootstrap interval.
    num_pairs: pairs of turns that it is made of.
    """

    median: float
    low: float
    high: float
    num_pairs: int

    def columns(self, name: str) -> dict[str, float]:
        """Three columns of a table, which begin with `name`."""
        return {name: self.median, f"{name} low": self.low, f"{name} high": self.high}


def paired_ratio(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Ratio:
    """Divides each of `ours` by the one of `theirs` in its pair; equal seeds give equal bounds.

    ours, theirs: one value of each pair, in the same order.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"pairs need one value of each side, got {len(ours)} and {len(theirs)}")
    ratios = np.array(ours, np.float64) / np.array(theirs, np.float64)
    draws = np.random.default_rng(seed).choice(ratios, (DRAWS, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return Ratio(float(np.median(ratios)), float(low), float(high), len(ratios))
