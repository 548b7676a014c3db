"""The default method, `janus`: a placement that leaves the activation scheduler room to balance.

What counts is not the token load but which experts are active together, and how freely the
scheduler can shift activations between instances. Hence: at most one more replica per expert than
any other has, likely experts first; expected activations spread evenly; and replicas linking as
many different pairs of instances as possible, so that load can flow from any instance to any
other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from janus_moe.errors import ConfigError
from janus_moe.policy.placement.filling import Filling
from janus_moe.policy.placement.replication import even_replicas
from janus_moe.policy.placement.sizing import even_capacity
from janus_moe.policy.placement.value import Placement

# Instances whose loads differ by less than this many replicas count as equal, so that links decide.
# Measured statistics hardly ever tie, and with 0 few instances get linked: busiest instance over
# an even split, mean of 240 cells with 160 experts on 8 to 32 instances: 1.077 with 0.1, 1.062
# from 0.5 to 4 (1.083 if loads are not projected, see `LinkedFilling`).
SLACK = 1.0


def initial_placement(
    num_layers: int,
    num_experts: int,
    num_instances: int,
    redundant_experts: int = 0,
    load: ArrayLike | None = None,
    epoch: int = 0,
) -> Placement:
    """Place any number of experts on any number of instances; slots differ by at most one.

    redundant_experts: replicas per layer beyond one of each expert.
    load: [layers, experts] how likely each expert is active in a step, on any scale
        (`activation_probability`); None without statistics, all alike.
    """
    capacity = even_capacity(num_experts, num_instances, redundant_experts)
    if load is None:
        layer = place_layer(np.ones(num_experts), capacity)
        slots = (layer,) * num_layers
    else:
        weights = np.asarray(load, np.float64)
        if weights.shape != (num_layers, num_experts) or not (weights >= 0).all():
            raise ConfigError(
                f"load must be {num_layers} layers x {num_experts} experts of numbers >= 0, got "
                f"shape {weights.shape}"
            )
        slots = tuple(place_layer(row, capacity) for row in weights)
    return Placement(epoch=epoch, num_experts=num_experts, slots=slots)


def activation_probability(
    token_counts: ArrayLike, num_tokens: ArrayLike, batch_size: int
) -> NDArray[np.float64]:
    """Chance that an expert is active in a batch: 1 - (1 - q)^B, with q its share of tokens.

    token_counts: [layers, experts] tokens routed to each expert, of `num_tokens` observed ones
        (one number, or one per layer).
    """
    counts = np.asarray(token_counts, np.float64)
    observed = np.maximum(np.asarray(num_tokens, np.float64), 1)
    share = np.clip(counts / (observed[:, None] if observed.ndim else observed), 0.0, 1.0)
    probability: NDArray[np.float64] = 1.0 - (1.0 - share) ** batch_size
    return probability


def place_layer(load: NDArray[np.float64], capacity: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """load: [experts]. capacity: [instances] slots, all used. Experts by instance, ascending."""
    copies = even_replicas(load, sum(capacity))
    share = load / copies
    filling = LinkedFilling(capacity, float(load.sum()))
    likely_first = [int(expert) for expert in np.argsort(-load, kind="stable")]
    # Replicated experts first; within, what differs most from an average slot.
    odd = np.abs(share - load.sum() / copies.sum())
    for expert in sorted(likely_first, key=lambda e: (copies[e] == 1, -odd[e], -share[e])):
        for _ in range(copies[expert]):
            filling.place(expert, float(share[expert]))
    return filling.slots()


class LinkedFilling(Filling):
    """Knows besides which instances replicas link, and how much load is still to come.

    All slots get filled, so an instance is judged by the load it will have if its free slots get
    average replicas. A replica lighter than the average then belongs where most load is expected,
    a heavier one where least is: larger instances thus get more of the replicated experts.
    """

    def __init__(self, capacity: Sequence[int], total_load: float) -> None:
        super().__init__(capacity)
        self.to_come, self.free_slots = total_load, sum(capacity)
        self.links = np.zeros((len(capacity), len(capacity)), np.int64)
        self.component = list(range(len(capacity)))  # of the graph that replicas span

    def place(self, expert: int, load: float) -> None:
        """Put one more replica of `expert` on the best instance that has none of it.

        Among nearly equal ones that is the least linked to other holders. An instance that no
        chain of replicas links to a holder comes first of all: the scheduler can only balance
        within what is connected.
        """
        average = self.to_come / self.free_slots
        self.to_come -= load
        self.free_slots -= 1
        free = self.free_for(expert)
        if not free:
            self.swap_in(expert, load)
            return
        sign = 1.0 if load >= average else -1.0
        rank = {
            i: sign * (self.load[i] + (self.capacity[i] - len(self.experts[i])) * average)
            for i in free
        }
        holders = self.holders(expert)
        limit = min(rank.values()) + SLACK * load
        near = [i for i in free if rank[i] <= limit]
        links = self.links[:, holders].sum(axis=1)
        linked = {self.component[i] for i in holders}
        best = min(near, key=lambda i: (self.component[i] in linked, links[i], rank[i], i))
        self.put(expert, load, best)

    def put(self, expert: int, load: float, instance: int) -> None:
        for other in self.holders(expert):
            self.links[instance, other] += 1
            self.links[other, instance] += 1
            old, new = self.component[other], self.component[instance]
            self.component = [new if c == old else c for c in self.component]
        super().put(expert, load, instance)

    def take(self, expert: int, instance: int) -> float:
        load = super().take(expert, instance)
        for other in self.holders(expert):
            self.links[instance, other] -= 1
            self.links[other, instance] -= 1
        return load
