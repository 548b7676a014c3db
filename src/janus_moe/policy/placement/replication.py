"""How many replicas each expert of a layer gets, when every slot is to be used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ReplicaCounts = NDArray[np.int64]


def even_replicas(load: NDArray[np.float64], num_slots: int) -> ReplicaCounts:
    """[experts] copies: no expert has two more than another; the highest loads have one more.

    What activation scheduling wants: a second home makes an expert movable, a third adds little.
    """
    everyone, some = divmod(num_slots, len(load))
    copies = np.full(len(load), everyone)
    copies[np.argsort(-load, kind="stable")[:some]] += 1
    return copies


def proportional_replicas(load: NDArray[np.float64], capacity: Sequence[int]) -> ReplicaCounts:
    """[experts] copies: each spare slot to the expert with the highest load per copy.

    Algorithm 2 of Janus and EPLB's rule, which suit token balance; never more copies than
    instances, nor so many that the slots of uneven instances cannot take the others.
    """
    copies = np.ones(len(load), np.int64)
    open_ = copies < len(capacity)
    for _ in range(sum(min(slots, len(load)) for slots in capacity) - len(load)):
        while True:
            share = np.where(open_, load / copies, -1.0)
            expert = int(np.argmax(share))
            copies[expert] += 1
            if fits(copies, capacity):
                break
            copies[expert] -= 1
            open_[expert] = False
        open_[expert] &= copies[expert] < len(capacity)
    return copies


def fits(copies: ReplicaCounts, capacity: Sequence[int]) -> bool:
    """Whether instances can hold the copies, no instance two of one expert (Gale and Ryser)."""
    wanted = np.cumsum(-np.sort(-copies))
    slots = np.asarray(capacity)
    if slots.max() - slots.min() <= 1 and wanted[-1] <= slots.sum():
        return bool(copies.max() <= len(slots))
    most = np.arange(1, len(copies) + 1)
    offered = np.minimum(slots[:, None], most[None, :]).sum(axis=0)
    return bool((wanted <= offered).all())
