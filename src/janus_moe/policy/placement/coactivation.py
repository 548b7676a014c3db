"""`coactivation`: Algorithms 2 and 3 of Janus (arXiv 2512.13525), with two corrections.

Replicas go to the experts with the most load per copy; then, by descending load, each replica to
the instance where it adds least co-activation: experts that tokens use together are kept apart.
Corrected: an expert has no more replicas than there are instances, and an expert swapped out never
lands where it already lives, nor keeps its old place. Fixed, where the paper leaves it open: equal
co-activation goes to the lighter instance, then to the lower id.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from janus_moe.policy.placement.filling import Filling
from janus_moe.policy.placement.replication import proportional_replicas


def place_layer(
    load: NDArray[np.float64], coactivation: NDArray[np.float64], capacity: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """load: [experts], tokens or activations. coactivation: [experts, experts], how often two are
    used together; symmetric, the diagonal does not matter. capacity: [instances] slots, all used.
    """
    copies = proportional_replicas(load, capacity)
    share = load / copies
    filling = Filling(capacity)
    members = np.zeros((len(capacity), len(load)))  # 1.0 where the instance holds the expert
    for expert in np.argsort(-share, kind="stable").tolist():
        for _ in range(copies[expert]):
            free = filling.free_for(expert)
            if free:
                added = members @ coactivation[expert]
                best = min(free, key=lambda i: (added[i], filling.load[i], i))
                filling.put(expert, float(share[expert]), best)
                members[best, expert] = 1.0
            else:
                filling.swap_in(expert, float(share[expert]))
                for instance, held in enumerate(filling.experts):
                    members[instance] = 0.0
                    members[instance, list(held)] = 1.0
    return filling.slots()


def mass(slots: Sequence[Sequence[int]], coactivation: NDArray[np.float64]) -> float:
    """What the method minimises: co-activation of pairs that share an instance."""
    pairs = np.triu(coactivation, 1)
    return float(sum(pairs[np.ix_(held, held)].sum() for held in map(sorted, slots)))
