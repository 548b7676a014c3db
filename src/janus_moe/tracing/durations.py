"""The typical one of several times that were measured of the same thing."""

from __future__ import annotations

from collections.abc import Sequence


def lower_quartile(seconds: Sequence[float]) -> float:
    """The time that three of four measurements take at least; `seconds` must not be empty.

    Late peers and a busy machine make single measurements longer and none shorter.
    """
    return sorted(seconds)[len(seconds) // 4]
