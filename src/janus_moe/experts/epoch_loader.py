"""Prepares an expert instance for later epochs, in threads beside the one that serves.

An epoch of the membership that it serves is a small change and takes spare slots. The first epoch
of another membership may be any change: the instance gets slots as they are needed, and gives
memory back once it serves nothing else. It does not decide what is moved or when it is used.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator

from janus_moe.errors import ConflictError, JanusError
from janus_moe.experts.epoch import Epoch, make_epoch
from janus_moe.experts.instance import ExpertInstance
from janus_moe.experts.pacing import FullSpeed, Pace, PaceName, StepPace
from janus_moe.experts.scheduling import Table
from janus_moe.experts.served_epochs import ServedEpochs
from janus_moe.experts.slot_filling import LoadPiece, SlotFiller
from janus_moe.messages import (
    CommitGeneration,
    DropEpoch,
    EpochFailed,
    EpochPrepared,
    FromWorker,
    PrepareEpoch,
    Stop,
    ToWorker,
)
from janus_moe.model.checkpoint import Checkpoint
from janus_moe.model.piecewise import Piece
from janus_moe.policy.placement import Placement

logger = logging.getLogger(__name__)


class EpochLoader:
    """Fills one expert instance: for orders in its inbox, and for other memberships.

    Its methods may be called in any thread; one at a time loads. What is loaded for another
    membership goes first: other loading is given up for it.

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
        checkpoint.files.remember()
        self._instance = instance
        self._slots = SlotFiller(instance, checkpoint, load_piece)
        self._paces: dict[PaceName, Pace] = {
            "steps": StepPace(instance.stepped, bytes_per_step),
            "full": FullSpeed(),
        }
        self._send = send
        self._loading = threading.Lock()
        self._first = 0  # stages that load or wait for others to give up
        self._first_lock = threading.Lock()
        self._staged: dict[int, list[Table]] = {}
        self._unstaged: set[int] = set()

    def serve(self, inbox: queue.SimpleQueue[ToWorker]) -> None:
        """Runs until told to stop or to leave; a message that arrives ends the loading."""
        while True:
            match inbox.get():
                case PrepareEpoch() as message:
                    self._prepare(message, inbox)
                case DropEpoch(epoch=epoch):
                    self._instance.epochs.unstage(epoch)
                case CommitGeneration() | Stop():
                    return
                case other:
                    raise TypeError(f"an expert instance cannot handle {type(other).__name__}")

    def stage(self, placement: Placement, rank: int, pace: PaceName) -> ServedEpochs:
        """Loads what the instance needs in another membership, beside what it serves.

        placement: of the first steps there; its epoch is later than any that is served.
        rank: of the instance there.
        pace: how fast.

        Returns what the instance is to be connected with at commit. Raises CheckpointError, which
        names the file, and ConflictError when it was unstaged meanwhile; the instance then serves
        as before, and what was loaded need not be loaded again.
        """
        number = placement.epoch

        def check() -> None:
            if number in self._unstaged:
                raise ConflictError(f"generation {number} of {self._instance.id} was dropped")

        with self._going_first():
            check()
            epochs = self._instance.epochs
            in_use = self._in_use(*epochs.in_use)
            plan = self._slots.plan([layer[rank] for layer in placement.slots], in_use)
            self._slots.grow(plan, in_use, self._paces[pace], check)
            self._slots.fill(plan, self._paces[pace], check)
            schedulers = epochs.schedulers.at_rank(rank)
            first = make_epoch(placement, plan.tables, schedulers, self._paces[pace].before_table)
            self._staged[number] = plan.tables
            try:
                check()
            except ConflictError:
                self._staged.pop(number, None)
                raise
            return epochs.followed_by(rank, first, schedulers)

    def unstage(self, number: int) -> None:
        """No step will come with what was, is or will be staged with this epoch; never waits."""
        self._unstaged.add(number)
        self._staged.pop(number, None)

    def settle(self, spare_slots: int, pace: PaceName = "steps") -> bool:
        """Gives memory of earlier memberships back; what is left lies in ascending order.

        spare_slots: per layer, beside the experts that are served.

        Returns False when it was not done: another epoch is staged, or was wanted meanwhile.
        """

        def check() -> None:
            if self._first:
                raise ConflictError("another membership is prepared")

        with self._loading:
            in_use = {epoch.number for epoch in self._instance.epochs.in_use}
            if len(in_use) > 1 or any(number > max(in_use) for number in list(self._staged)):
                return False
            try:
                self._slots.settle(spare_slots, self._paces[pace], check)
            except ConflictError:
                return False
            return True

    @contextlib.contextmanager
    def _going_first(self) -> Iterator[None]:
        with self._first_lock:
            self._first += 1
        try:
            with self._loading:
                yield
        finally:
            with self._first_lock:
                self._first -= 1

    def _prepare(self, message: PrepareEpoch, inbox: queue.SimpleQueue[ToWorker]) -> None:
        """Any failure leaves the instance as it was, and is reported."""
        instance, epoch = self._instance.id, message.epoch
        try:
            with self._loading:
                self._load(message, inbox)
        except _OtherOrder:
            return
        # A last resort: this thread lives on, and the engine waits for an answer. Reading a
        # checkpoint fails in more ways than can be listed (files, memory, torch).
        except Exception as error:
            text = str(error)
            if not isinstance(error, JanusError):
                logger.exception("%s could not prepare epoch %d", instance, epoch)
                text = type(error).__name__
            self._send(EpochFailed(instance=instance, epoch=epoch, error=text))
            return
        self._send(EpochPrepared(instance=instance, epoch=epoch))

    def _load(self, message: PrepareEpoch, inbox: queue.SimpleQueue[ToWorker]) -> None:
        def check() -> None:
            if not inbox.empty():
                raise _OtherOrder
            if self._first:
                raise ConflictError("another membership is prepared")

        epochs, pace = self._instance.epochs, self._paces["steps"]
        placement = Placement(
            epoch=message.epoch,
            num_experts=self._instance.runner.model.spec.moe.num_experts,
            slots=message.placement,
        )
        # What an earlier epoch dropped is free: no step comes with it once this one is asked for.
        in_use = self._in_use(epochs.latest)
        plan = self._slots.plan([layer[epochs.rank] for layer in placement.slots], in_use)
        self._slots.require_room(plan, in_use)
        self._slots.fill(plan, pace, check)
        epochs.stage(make_epoch(placement, plan.tables, epochs.schedulers, pace.before_table))

    def _in_use(self, *epochs: Epoch) -> list[set[int]]:
        """[moe layers] slots of these epochs, and of what is staged for other memberships."""
        served = self._instance.epochs.current.number
        for number in list(self._staged):  # `unstage` may be called meanwhile
            if number <= served:
                self._staged.pop(number, None)
        tables = [*(epoch.slots for epoch in epochs), *self._staged.values()]
        return [
            {slot for table in layer for slot in table.tolist() if slot >= 0}
            for layer in zip(*tables, strict=True)
        ]


class _OtherOrder(Exception):
    """A message came while it loaded."""
