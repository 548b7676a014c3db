"""Finding a placement that leaves the activation scheduler room to balance.

What counts is not the token load but which experts are active together, and how freely the
scheduler can shift activations between instances. Hence: at most one more replica per expert than
any other has, likely experts first; expected activations spread evenly; and replicas linking as
many different pairs of instances as possible, so that load can flow from any instance to any
other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from janus_moe.errors import ConfigError
from janus_moe.policy.placement.sizing import validate_shape
from janus_moe.policy.placement.value import Placement

# Loads closer than this share of the replica at hand count as equal. Measured statistics hardly
# ever tie, and with 0 the links then chain few instances: 256 experts + 64 replicas on 16
# instances, 64 tokens of mixed topics: busiest instance 13.8 with 0, 12.4 from 0.1 to 2.
SLACK = 0.1


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
    validate_shape(num_experts, num_instances, redundant_experts)
    if load is None:
        layer = _place_layer(np.ones(num_experts), num_instances, redundant_experts)
        slots = (layer,) * num_layers
    else:
        weights = np.asarray(load, np.float64)
        if weights.shape != (num_layers, num_experts) or not (weights >= 0).all():
            raise ConfigError(
                f"load must be {num_layers} layers x {num_experts} experts of numbers >= 0, got "
                f"shape {weights.shape}"
            )
        slots = tuple(_place_layer(row, num_instances, redundant_experts) for row in weights)
    return Placement(epoch=epoch, num_experts=num_experts, slots=slots)


def activation_probability(
    token_counts: ArrayLike, num_tokens: int, batch_size: int
) -> NDArray[np.float64]:
    """Chance that an expert is active in a batch: 1 - (1 - q)^B, with q its share of tokens.

    token_counts: [layers, experts] tokens routed to each expert, of `num_tokens` observed ones.
    """
    share = np.clip(np.asarray(token_counts, np.float64) / max(num_tokens, 1), 0.0, 1.0)
    probability: NDArray[np.float64] = 1.0 - (1.0 - share) ** batch_size
    return probability


def _place_layer(
    load: NDArray[np.float64], num_instances: int, redundant_experts: int
) -> tuple[tuple[int, ...], ...]:
    """load: [experts]. Returns each instance's experts, ascending."""
    num_experts = len(load)
    likely_first = [int(expert) for expert in np.argsort(-load, kind="stable")]
    everyone, some = divmod(redundant_experts, num_experts)
    copies = np.full(num_experts, 1 + everyone)
    copies[likely_first[:some]] += 1
    layer = _Layer(num_instances, num_experts + redundant_experts)
    # Replicated experts first, longest processing time first within.
    share = load / copies
    for expert in sorted(likely_first, key=lambda e: (copies[e] == 1, -share[e])):
        for _ in range(copies[expert]):
            layer.place(expert, float(share[expert]))
    return tuple(tuple(sorted(experts)) for experts in layer.experts)


class _Layer:
    """One layer while it is being filled."""

    def __init__(self, num_instances: int, num_slots: int) -> None:
        base, larger = divmod(num_slots, num_instances)
        self.capacity = [base + (i < larger) for i in range(num_instances)]
        self.experts: list[dict[int, float]] = [{} for _ in range(num_instances)]
        self.load = [0.0] * num_instances
        self.links = np.zeros((num_instances, num_instances), np.int64)
        self.component = list(range(num_instances))  # of the graph that replicas span

    def place(self, expert: int, load: float) -> None:
        """Put one more replica of `expert` on the best instance that has none of it."""
        holders = [i for i, experts in enumerate(self.experts) if expert in experts]
        free = [i for i in self._with_room() if i not in holders]
        if free:
            self._put(expert, load, self._best(free, holders, load))
        else:
            self._swap_in(expert, load, holders)

    def _with_room(self) -> list[int]:
        return [i for i, experts in enumerate(self.experts) if len(experts) < self.capacity[i]]

    def _best(self, free: list[int], holders: list[int], load: float) -> int:
        """The lightest instance; among nearly equal ones the least linked to other holders.

        An instance that no chain of replicas links to a holder comes first of all: the scheduler
        can only balance within what is connected.
        """
        limit = min(self.load[i] for i in free) + SLACK * load
        near = [i for i in free if self.load[i] <= limit]
        links = self.links[:, holders].sum(axis=1)
        linked = {self.component[i] for i in holders}
        return min(near, key=lambda i: (self.component[i] in linked, links[i], self.load[i], i))

    def _put(self, expert: int, load: float, instance: int) -> None:
        for other, experts in enumerate(self.experts):
            if expert in experts:
                self.links[instance, other] += 1
                self.links[other, instance] += 1
                old, new = self.component[other], self.component[instance]
                self.component = [new if c == old else c for c in self.component]
        self.experts[instance][expert] = load
        self.load[instance] += load

    def _swap_in(self, expert: int, load: float, holders: list[int]) -> None:
        """Every instance with room holds `expert` already: make room elsewhere.

        Some expert of a full instance can always move to one with room, because capacities
        differ by at most one; of the possible moves, take the one that leaves loads most even.
        """
        moves = [
            (max(self.load[roomy] + weight, self.load[full] - weight + load), full, moved, roomy)
            for roomy in self._with_room()
            for full in range(len(self.experts))
            if full not in holders
            for moved, weight in self.experts[full].items()
            if moved not in self.experts[roomy]
        ]
        _, full, moved, roomy = min(moves)
        weight = self.experts[full].pop(moved)
        self.load[full] -= weight
        for other, experts in enumerate(self.experts):
            if moved in experts:
                self.links[full, other] -= 1
                self.links[other, full] -= 1
        self._put(moved, weight, roomy)
        self._put(expert, load, full)
