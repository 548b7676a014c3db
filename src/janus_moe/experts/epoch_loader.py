"""Prepares an expert instance for later epochs, in a thread beside the one that serves.

While steps are served it loads so many bytes, then waits for the next step; when none comes for a
while it does not wait. Weights go into slots that no served epoch uses, so the two threads share
nothing but the slots' memory. It does not decide what is moved or when an epoch is used.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Sequence

from janus_moe.errors import JanusError
from janus_moe.experts.epoch import Arrival, make_epoch, place_arrivals
from janus_moe.experts.instance import ExpertInstance
from janus_moe.messages import (
    DropEpoch,
    EpochFailed,
    EpochPrepared,
    FromWorker,
    PrepareEpoch,
    Stop,
    ToWorker,
)
from janus_moe.model.checkpoint import Checkpoint
from janus_moe.model.piecewise import Piece, expert_pieces
from janus_moe.policy.placement import Placement

logger = logging.getLogger(__name__)

IDLE_AFTER_S = 0.1
"""Without a step for so long, loading need not wait for one."""

PIECES_PER_STEP = 6
"""Small pieces cost time too; so many of them between two steps at most."""

TABLES_S = 0.0002
"""Tables are made for so long before the next step is waited for: to be woken costs time, too."""

LoadPiece = Callable[[Piece], None]


class EpochLoader:
    """Takes PrepareEpoch and DropEpoch for one expert instance.

    instance: what epochs are staged for.
    checkpoint: where weights are read from.
    bytes_per_step: what it reads between two steps.
    send: takes `EpochPrepared` and `EpochFailed`.
    load_piece: how a piece is read; tests pass faults.
    """

    def __init__(
        self,
        instance: ExpertInstance,
        checkpoint: Checkpoint,
        bytes_per_step: int,
        send: Callable[[FromWorker], None],
        load_piece: LoadPiece = Piece.load,
    ) -> None:
        self._instance = instance
        self._checkpoint = checkpoint
        self._bytes_per_step = bytes_per_step
        self._send = send
        self._load_piece = load_piece
        self._spent = 0
        self._idle = False
        self._woken_at = 0.0

    def serve(self, inbox: queue.SimpleQueue[ToWorker]) -> None:
        """Runs until a Stop message; a message that arrives while it loads ends the loading."""
        while True:
            match inbox.get():
                case PrepareEpoch() as message:
                    self._prepare(message, inbox)
                case DropEpoch(epoch=epoch):
                    self._instance.epochs.unstage(epoch)
                case Stop():
                    return
                case other:
                    raise TypeError(f"an expert instance cannot handle {type(other).__name__}")

    def _prepare(self, message: PrepareEpoch, inbox: queue.SimpleQueue[ToWorker]) -> None:
        """Any failure leaves the instance as it was, and is reported."""
        instance, epoch = self._instance.id, message.epoch
        try:
            prepared = self._load(message, inbox)
        # A last resort: this thread lives on, and the engine waits for an answer. Reading a
        # checkpoint fails in more ways than can be listed (files, memory, torch).
        except Exception as error:
            text = str(error)
            if not isinstance(error, JanusError):
                logger.exception("%s could not prepare epoch %d", instance, epoch)
                text = type(error).__name__
            self._send(EpochFailed(instance=instance, epoch=epoch, error=text))
            return
        if prepared:
            self._send(EpochPrepared(instance=instance, epoch=epoch))

    def _load(self, message: PrepareEpoch, inbox: queue.SimpleQueue[ToWorker]) -> bool:
        """False when it was told something else before it was done."""
        instance, epochs, model = self._instance, self._instance.epochs, self._instance.runner.model
        placement = Placement(
            epoch=message.epoch,
            num_experts=model.spec.moe.num_experts,
            slots=message.placement,
        )
        tables, arrivals = place_arrivals(
            epochs.latest.slots,
            [layer[epochs.rank] for layer in placement.slots],
            [model.layers[layer].gate_up.shape[0] for layer in instance.layers],
        )
        if not self._load_all(arrivals, inbox):
            return False
        epochs.stage(make_epoch(placement, tables, epochs.schedulers, self._wait_when_long))
        return True

    def _load_all(self, arrivals: Sequence[Arrival], inbox: queue.SimpleQueue[ToWorker]) -> bool:
        for layer, expert, slot in arrivals:
            layer_id = self._instance.layers[layer]
            model = self._instance.runner.model
            for piece in expert_pieces(
                model, self._checkpoint, layer_id, expert, slot, self._bytes_per_step
            ):
                if not inbox.empty():
                    return False
                least = self._bytes_per_step // PIECES_PER_STEP
                self._wait_for_budget(max(piece.num_bytes, least))
                self._load_piece(piece)
        return True

    def _wait_for_budget(self, num_bytes: int) -> None:
        """Once the bytes of a step are spent, waits for the end of the next one."""
        if self._spent + num_bytes > self._bytes_per_step and self._spent:
            self._wait_for_step()
            self._spent = 0
        self._spent += num_bytes

    def _wait_when_long(self) -> None:
        """Waits for the end of a step once it has worked for a while since the last one."""
        if time.perf_counter() - self._woken_at > TABLES_S:
            self._wait_for_step()

    def _wait_for_step(self) -> None:
        """Waits for the end of a step; not at all when there has been none for a while."""
        stepped = self._instance.stepped.wait(0 if self._idle else IDLE_AFTER_S)
        self._instance.stepped.clear()
        self._idle = not stepped
        self._woken_at = time.perf_counter()
