"""From one placement to another in small steps, while every expert stays served.

Each step is a placement of its own. Before it, an instance loads the experts that the step adds
into spare slots; after it, the slots of those it drops are free. What an instance keeps never
moves. This module does not know what is loaded from where, or when a step is taken.

Why there is always a next step: an instance that lacks an expert either has a free slot, or holds
one that it need not keep. If another instance holds that too, it goes. Otherwise an instance that
is to hold it must take it in the same step, and so on; this walk ends at an instance with room, or
closes a circle in which each takes one expert and drops one.
"""

from __future__ import annotations

from collections.abc import Sequence

from janus_moe.errors import ConfigError
from janus_moe.policy.placement.value import Placement

LayerSlots = tuple[tuple[int, ...], ...]


def migration_steps(
    current: Placement, target: Placement, spare: int, first_epoch: int | None = None
) -> tuple[Placement, ...]:
    """Placements that lead from `current` to `target`, the last one; none if they are the same.

    spare: experts per layer that an instance can load beside those it holds. No instance ever
    holds more than it does in `current` or in `target`, whichever is larger, plus `spare`, with
    those it loads counted in. first_epoch: of the first step, by default the one after that of
    `current`; the others follow it.
    """
    if spare < 1:
        raise ConfigError(f"moving experts needs a spare slot or more per instance, got {spare}")
    _check_alike(current, target)
    layers = [
        _layer_steps(old, new, spare) for old, new in zip(current.slots, target.slots, strict=True)
    ]
    num_steps = max(map(len, layers))
    first_epoch = current.epoch + 1 if first_epoch is None else first_epoch
    return tuple(
        Placement(
            epoch=first_epoch + step,
            num_experts=current.num_experts,
            slots=tuple(
                steps[min(step, len(steps) - 1)] if steps else slots
                for steps, slots in zip(layers, target.slots, strict=True)
            ),
        )
        for step in range(num_steps)
    )


def _check_alike(current: Placement, target: Placement) -> None:
    for name, old, new in (
        ("layers", current.num_layers, target.num_layers),
        ("expert instances", current.num_instances, target.num_instances),
        ("experts per layer", current.num_experts, target.num_experts),
    ):
        if old != new:
            raise ConfigError(f"the placement is of {new} {name}, the running one of {old}")


def _layer_steps(current: LayerSlots, target: LayerSlots, spare: int) -> list[LayerSlots]:
    """The slots of one layer after each step, the last `target`; empty if nothing changes."""
    if current == target:
        return []
    state = _Layer(current, target)
    steps: list[LayerSlots] = []
    while state.incomplete():
        state.advance(spare)
        steps.append(state.slots())
    return [*steps[:-1], target]  # what is left to drop goes with the last step


class _Layer:
    """One layer between two placements; no instance holds more than its capacity."""

    def __init__(self, current: LayerSlots, target: LayerSlots) -> None:
        self.held = [set(experts) for experts in current]
        self.target = [set(experts) for experts in target]
        pairs = zip(current, target, strict=True)
        self.capacity = [max(len(old), len(new)) for old, new in pairs]

    def slots(self) -> LayerSlots:
        return tuple(tuple(sorted(experts)) for experts in self.held)

    def missing(self, instance: int) -> list[int]:
        return sorted(self.target[instance] - self.held[instance])

    def incomplete(self) -> bool:
        return any(map(self.missing, range(len(self.held))))

    def advance(self, spare: int) -> None:
        """As many moves as fit into one step: `spare` experts for each instance."""
        budget = [spare] * len(self.held)
        for instance in range(len(self.held)):
            while budget[instance] and (moves := self._moves(instance, budget)):
                for taker, expert, dropped in moves:
                    self.held[taker].add(expert)
                    self.held[taker].discard(dropped)
                    budget[taker] -= 1

    def _moves(self, instance: int, budget: Sequence[int]) -> list[tuple[int, int, int]]:
        """(instance, expert it takes, expert it drops or -1) that start at `instance`, all valid
        together; empty when it lacks nothing or the walk meets an instance without budget."""
        missing = self.missing(instance)
        if not missing:
            return []
        expert = missing[0]
        moves: list[tuple[int, int, int]] = []
        while True:
            if not budget[instance]:
                return []
            visited = [taker for taker, _, _ in moves]
            if instance in visited:  # a circle: its first instance takes what the last one drops
                circle = moves[visited.index(instance) :]
                return [(instance, expert, circle[0][2]), *circle[1:]]
            dropped = self._to_drop(instance)
            moves.append((instance, expert, dropped))
            if dropped < 0 or self._holders(dropped) > 1:
                return moves
            expert = dropped
            instance = self._next_home(dropped)

    def _to_drop(self, instance: int) -> int:
        """What `instance` drops to take one more, -1 for nothing; rather what others hold too."""
        if len(self.held[instance]) < self.capacity[instance]:
            return -1
        leaving = self.held[instance] - self.target[instance]
        return min(leaving, key=lambda expert: (self._holders(expert) == 1, expert))

    def _next_home(self, expert: int) -> int:
        return next(i for i, experts in enumerate(self.target) if expert in experts)

    def _holders(self, expert: int) -> int:
        return sum(expert in experts for experts in self.held)
