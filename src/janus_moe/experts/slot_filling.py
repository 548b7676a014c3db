"""Fills the slots of an expert instance, gives it more of them, and puts them in order.

Weights go to slots that no epoch in use has, so the thread that works here and the one that serves
share nothing but memory. It does not know who decides what an instance holds, or when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from janus_moe.errors import ConfigError
from janus_moe.experts.epoch import Arrival, contents_of, place_arrivals
from janus_moe.experts.instance import ExpertInstance
from janus_moe.experts.pacing import Pace
from janus_moe.experts.scheduling import Table
from janus_moe.model.checkpoint import Checkpoint
from janus_moe.model.piecewise import Piece, expert_pieces
from janus_moe.model.slot_storage import release_free_memory

LoadPiece = Callable[[Piece], None]
InUse = Sequence[Collection[int]]
"""[moe layers] slots whose contents must stay as they are."""


class FillPlan(NamedTuple):
    """What an instance does to hold the experts of an epoch.

    tables: [moe layers] where they will lie.
    arrivals: what has to be loaded for it.
    """

    tables: list[Table]
    arrivals: list[Arrival]


class SlotFiller:
    """The slots of one instance, and what lies in each; one thread at a time.

    instance: whose slots.
    checkpoint: where weights are read from.
    load_piece: how a piece is read; tests pass faults.
    """

    def __init__(
        self, instance: ExpertInstance, checkpoint: Checkpoint, load_piece: LoadPiece
    ) -> None:
        self._instance = instance
        self._model = instance.runner.model
        self._checkpoint = checkpoint
        self._load_piece = load_piece
        # [moe layers][slots] expert that lies there complete; -1 for none.
        self._contents = [
            contents_of(table, self._model.num_slots(layer))
            for layer, table in zip(instance.layers, instance.epochs.latest.slots, strict=True)
        ]

    def plan(self, experts: Sequence[Sequence[int]], in_use: InUse) -> FillPlan:
        """What to do for these experts.

        experts: [moe layers] logical ids.
        """
        num_experts = self._model.spec.moe.num_experts
        return FillPlan(*place_arrivals(self._contents, experts, in_use, num_experts))

    def require_room(self, plan: FillPlan, in_use: InUse) -> None:
        """Raises ConfigError when a layer has too few slots for a plan."""
        for layer, contents in enumerate(self._contents):
            if plan.tables[layer].max(initial=-1) < len(contents):
                continue
            present = {e for e, slot in enumerate(plan.tables[layer].tolist()) if slot >= 0}
            kept = {slot for slot, expert in enumerate(contents) if expert in present}
            arriving = sum(arrival.layer == layer for arrival in plan.arrivals)
            free = len(contents) - len(kept | set(in_use[layer]))
            raise ConfigError(
                f"MoE layer {layer} is to load {arriving} experts but has {free} of "
                f"{len(contents)} slots free; move fewer at once or raise --rebalance-spare-slots"
            )

    def grow(self, plan: FillPlan, in_use: InUse, pace: Pace, check: Callable[[], None]) -> None:
        """Gives layers that have too few slots for a plan more of them; nothing moves.

        check: called often; it may raise to end the work.
        """
        for number, table in enumerate(plan.tables):
            contents, num_slots = self._contents[number], int(table.max(initial=-1)) + 1
            if num_slots <= len(contents):
                continue
            layer = self._instance.layers[number]
            weights = self._model.layers[layer].extended(num_slots)
            if weights is None:
                used = {*table.tolist(), *in_use[number]}
                contents = [e if slot in used else -1 for slot, e in enumerate(contents)]
                stay = {slot: slot for slot, expert in enumerate(contents) if expert >= 0}
                weights = self._model.layers[layer].moved(
                    num_slots, stay, _before_copy(pace, check)
                )
            # Those who compute have either memory, and both hold what they use.
            self._model.layers[layer] = weights
            self._contents[number] = contents + [-1] * (num_slots - len(contents))

    def fill(self, plan: FillPlan, pace: Pace, check: Callable[[], None]) -> None:
        """Loads what arrives; whatever ends it, a slot holds a complete expert or counts as free.

        check: called often; it may raise to end the work.
        """
        for layer, expert, slot in plan.arrivals:
            self._contents[layer][slot] = -1
            for piece in expert_pieces(
                self._model,
                self._checkpoint,
                self._instance.layers[layer],
                expert,
                slot,
                pace.piece_bytes,
            ):
                check()
                pace.before_bytes(piece.num_bytes)
                self._load_piece(piece)
            self._contents[layer][slot] = expert

    def settle(self, spare_slots: int, pace: Pace, check: Callable[[], None]) -> None:
        """Leaves each layer the experts of the one epoch in use, in ascending order, and so many
        spare slots; the rest of the memory goes back.

        In one order, sums do not depend on how the instance came to hold its experts.
        """
        num_experts, moved = self._model.spec.moe.num_experts, False
        for number, layer in enumerate(self._instance.layers):
            table = self._instance.epochs.latest.slots[number]
            experts = np.flatnonzero(table >= 0)
            num_slots = min(len(experts) + spare_slots, num_experts)
            moves = dict(zip(table[experts].tolist(), range(len(experts)), strict=True))
            ordered = all(old == new for old, new in moves.items())
            if ordered and num_slots == len(self._contents[number]):
                continue
            weights = self._model.layers[layer].moved(num_slots, moves, _before_copy(pace, check))
            ordered_table = np.full_like(table, -1)
            ordered_table[experts] = np.arange(len(experts))
            self._instance.move_layer(number, weights, ordered_table)
            self._contents[number] = contents_of(ordered_table, num_slots)
            moved = True
        if moved:
            release_free_memory()


def _before_copy(pace: Pace, check: Callable[[], None]) -> Callable[[int], None]:
    def before_copy(num_bytes: int) -> None:
        check()
        pace.before_bytes(num_bytes)

    return before_copy
