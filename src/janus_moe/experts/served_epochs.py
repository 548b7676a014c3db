"""The epochs that an expert instance serves: the current one and those that are staged.

It does not know what an epoch is used for, how its weights are loaded, or who decides on it.
"""

from __future__ import annotations

from janus_moe.errors import ExchangeError
from janus_moe.experts.epoch import Epoch
from janus_moe.experts.scheduling import LayerScheduler, Schedulers, Table
from janus_moe.spec import InstanceId
from janus_moe.transport import Ticket


class ServedEpochs:
    """Steps come with the current epoch or a staged one, in ascending order.

    One thread at a time calls `of_step`; another may stage, unstage and move.

    instance_id: named in errors.
    rank: position of the instance in the placements.
    first: epoch of the first steps.
    schedulers: makes the schedulers of later epochs.
    """

    def __init__(
        self, instance_id: InstanceId, rank: int, first: Epoch, schedulers: Schedulers
    ) -> None:
        self.rank = rank
        self.schedulers = schedulers
        self._instance_id = instance_id
        self._current = self._latest = self._before_latest = first
        self._staged: dict[int, Epoch] = {}

    def followed_by(self, rank: int, first: Epoch, schedulers: Schedulers) -> ServedEpochs:
        """What the same instance serves in another membership.

        rank: position of the instance there.
        first: epoch of its first steps.
        """
        return ServedEpochs(self._instance_id, rank, first, schedulers)

    @property
    def current(self) -> Epoch:
        """What the latest step was served with."""
        return self._current

    @property
    def latest(self) -> Epoch:
        """What steps to come are served with; no step need have used it yet."""
        return self._latest

    @property
    def in_use(self) -> tuple[Epoch, ...]:
        """All epochs that a step may come with."""
        return (self._current, self._before_latest, self._latest, *self._staged.values())

    def move_layer(self, layer: int, table: Table, scheduler: LayerScheduler) -> None:
        """The experts of one MoE layer lie in other slots; only while one epoch is in use."""
        moved = self._latest.with_layer(layer, table, scheduler)
        self._current = self._latest = self._before_latest = moved

    def stage(self, epoch: Epoch) -> None:
        """Steps may come with this epoch or the one before; its weights are in their slots."""
        self._before_latest, self._latest = self._latest, epoch
        for number in list(self._staged):
            if number < self._before_latest.number:
                self._staged.pop(number, None)
        self._staged[epoch.number] = epoch

    def unstage(self, number: int) -> None:
        """No step will come with this epoch."""
        self._staged.pop(number, None)
        if self._latest.number == number:
            self._latest = self._before_latest

    def of_step(self, ticket: Ticket) -> Epoch:
        """The epoch of an exchange, current from now on; earlier ones never come again.

        Raises ExchangeError when it is neither current nor staged.
        """
        if ticket.epoch == self._current.number:
            return self._current
        epoch = self._staged.pop(ticket.epoch, None)
        if epoch is None:
            raise ExchangeError(
                f"{self._instance_id} serves epoch {self._current.number} and was not prepared for "
                f"epoch {ticket.epoch} of step {ticket.step}"
            )
        self._current = epoch
        return epoch
