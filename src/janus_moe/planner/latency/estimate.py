"""A duration with how sure one may be of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Confidence = Literal["measured", "interpolated", "roofline"]
"""measured: this operation at this size was timed on this kind of device. interpolated: a law or a
table fitted to such timings, at another size. roofline: data sheet figures with usual efficiencies.
"""

_ORDER: tuple[Confidence, ...] = ("measured", "interpolated", "roofline")


def weakest(confidences: Iterable[Confidence]) -> Confidence:
    """What a sum of parts deserves: the confidence of its least certain part."""
    return max(confidences, key=_ORDER.index, default="measured")


@dataclass(frozen=True, slots=True)
class Estimate:
    """seconds, and where they come from."""

    seconds: float
    confidence: Confidence

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.seconds + other.seconds, weakest((self.confidence, other.confidence)))

    def times(self, factor: float) -> Estimate:
        """`factor` such durations one after another."""
        return Estimate(self.seconds * factor, self.confidence)
