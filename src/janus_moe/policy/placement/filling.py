"""One layer's instances while they are being filled: room, loads, and making room when stuck.

It does not know which instance is best for a replica; the methods do.
"""

from __future__ import annotations

from collections.abc import Sequence


class Filling:
    """capacity: [instances] slots. An instance holds an expert at most once, always."""

    def __init__(self, capacity: Sequence[int]) -> None:
        self.capacity = list(capacity)
        self.experts: list[dict[int, float]] = [{} for _ in capacity]  # expert -> its load there
        self.load = [0.0] * len(self.capacity)

    def slots(self) -> tuple[tuple[int, ...], ...]:
        """Each instance's experts, ascending."""
        return tuple(tuple(sorted(experts)) for experts in self.experts)

    def with_room(self) -> list[int]:
        return [i for i, experts in enumerate(self.experts) if len(experts) < self.capacity[i]]

    def holders(self, expert: int) -> list[int]:
        return [i for i, experts in enumerate(self.experts) if expert in experts]

    def free_for(self, expert: int) -> list[int]:
        """Instances that have room and no replica of `expert`; may be none."""
        return [i for i in self.with_room() if expert not in self.experts[i]]

    def put(self, expert: int, load: float, instance: int) -> None:
        self.experts[instance][expert] = load
        self.load[instance] += load

    def take(self, expert: int, instance: int) -> float:
        load = self.experts[instance].pop(expert)
        self.load[instance] -= load
        return load

    def swap_in(self, expert: int, load: float) -> None:
        """Every instance with room holds `expert` already: make room elsewhere.

        Of the single moves that help, the one that leaves loads most even; if capacities are so
        uneven that none does, a chain of moves. There is one whenever replicas and capacities
        agree (`replication.fits`): it is an augmenting path of a flow.
        """
        holders = self.holders(expert)
        moves = [
            (max(self.load[roomy] + weight, self.load[full] - weight + load), full, moved, roomy)
            for roomy in self.with_room()
            for full in range(len(self.experts))
            if full not in holders
            for moved, weight in self.experts[full].items()
            if moved not in self.experts[roomy]
        ]
        if moves:
            _, full, moved, roomy = min(moves)
            self.put(moved, self.take(moved, full), roomy)
            self.put(expert, load, full)
            return
        for moved, source, target in self._chain(expert):
            self.put(moved, self.take(moved, source), target)
            full = source
        self.put(expert, load, full)

    def _chain(self, expert: int) -> list[tuple[int, int, int]]:
        """Moves (expert, from, to), last to first, that free a slot where `expert` is not."""
        arrival: dict[int, tuple[int, int]] = {}  # instance -> (expert that came, from)
        queue = [i for i in range(len(self.experts)) if expert not in self.experts[i]]
        seen, asked = set(queue), {expert}
        for instance in queue:
            for moved in sorted(self.experts[instance].keys() - asked):
                asked.add(moved)
                for target in range(len(self.experts)):
                    if target in seen or moved in self.experts[target]:
                        continue
                    seen.add(target)
                    arrival[target] = (moved, instance)
                    queue.append(target)
                    if len(self.experts[target]) < self.capacity[target]:
                        return _trace(target, arrival)
        raise AssertionError("no chain of moves makes room: replicas and capacities disagree")


def _trace(target: int, arrival: dict[int, tuple[int, int]]) -> list[tuple[int, int, int]]:
    moves = []
    while target in arrival:
        expert, source = arrival[target]
        moves.append((expert, source, target))
        target = source
    return moves
