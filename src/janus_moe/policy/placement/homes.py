"""Which instance keeps an expert, when instances may have to give some up: as many experts as
possible keep a home. It does not know where the others go.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def find_homes(
    held: Sequence[frozenset[int]], limits: Sequence[int], load: NDArray[np.float64]
) -> tuple[list[set[int]], list[int]]:
    """One home for as many experts as can keep one.

    held: [instances] experts that lie there.
    limits: [instances] experts that each can keep at most.
    load: [experts].

    Returns [instances] the experts whose home it is, and the experts without one, ascending.
    """
    homes: list[set[int]] = [set() for _ in held]
    holders: list[list[int]] = [[] for _ in load]
    for instance, experts in enumerate(held):
        for expert in experts:
            holders[expert].append(instance)
    last = _given_up(held, limits, load)
    homeless, full = [], set[int]()
    for expert in sorted(range(len(load)), key=lambda e: (e in last, e)):
        asked = set(full)
        if not _settle(expert, holders, homes, limits, asked):
            homeless.append(expert)
            full = asked  # they get no room later either
    return homes, sorted(homeless)


def _given_up(
    held: Sequence[frozenset[int]], limits: Sequence[int], load: NDArray[np.float64]
) -> set[int]:
    """Experts that an instance with too many rather gives up: likely and unlikely ones alike."""
    given_up: set[int] = set()
    for experts, limit in zip(held, limits, strict=True):
        excess = max(0, len(experts) - limit)
        likely_first = sorted(experts, key=lambda e: (-load[e], e))
        for place, expert in enumerate(likely_first):
            if (place + 1) * excess // len(experts) > place * excess // len(experts):
                given_up.add(expert)
    return given_up


def _settle(
    expert: int,
    holders: Sequence[Sequence[int]],
    homes: list[set[int]],
    limits: Sequence[int],
    asked: set[int],
) -> bool:
    """Gives an expert a home, if need be by moving others to another of theirs (an augmenting path
    of a matching).

    asked: instances that are known to have no room and to get none.
    """
    open_ = [instance for instance in holders[expert] if instance not in asked]
    for instance in sorted(open_, key=lambda i: (len(homes[i]) - limits[i], i)):
        if len(homes[instance]) < limits[instance]:
            homes[instance].add(expert)
            return True
    for instance in open_:
        asked.add(instance)
        for other in sorted(homes[instance]):
            homes[instance].discard(other)
            if _settle(other, holders, homes, limits, asked):
                homes[instance].add(expert)
                return True
            homes[instance].add(other)
    return False
