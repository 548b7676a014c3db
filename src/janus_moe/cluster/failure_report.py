"""Which failure ended a service, and which ones only followed from it.

The verdict comes at once, with what is known: a worker's own error, or its loss. Two things are not
the cause until a moment has passed. A worker that exited by itself has said why before it did, and
its words are only to be read. A failure that a lost peer caused is told by the worker that lost it
only if the loss itself is not noticed soon; a loss is told with what a peer has seen by then. What
is heard after the verdict goes to the log.

This module is pure: times are arguments in seconds of any one clock. It does not know how failures
are noticed or what is done about them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from janus_moe.cluster.grace_periods import LAST_WORDS_S, PEER_EVENT_S
from janus_moe.cluster.runtime.base import RuntimeEvent, RuntimeFailed, WorkersLost
from janus_moe.errors import ServiceError, WorkerFailed
from janus_moe.messages import Failed


@dataclass(frozen=True, slots=True)
class _Loss:
    """workers: those that are gone.
    error: what to raise if nothing else is the cause.
    due_s: when it is the cause unless another one has been heard of."""

    workers: frozenset[str]
    error: ServiceError
    due_s: float


class FailureReport:
    """Collects what is heard of failures in one service, in any order.

    workers: names of all workers.
    stage: what the service is doing, for the sentences: "starting" or "serving".
    """

    def __init__(self, workers: Sequence[str]) -> None:
        self.stage = "starting"
        self._workers = frozenset(workers)
        self._own_error: ServiceError | None = None
        self._losses: list[_Loss] = []
        self._lost_a_peer: dict[str, tuple[Failed, float]] = {}
        self._spoke: set[str] = set()

    def on_failed(self, worker: str, failed: Failed, now_s: float) -> None:
        """Takes what a worker said of itself before it ended."""
        self._spoke.add(worker)
        if failed.caused_by_peer:
            self._lost_a_peer.setdefault(worker, (failed, now_s))
        else:
            self._own_error = self._own_error or self._failed(failed)

    def on_event(self, event: RuntimeEvent, now_s: float) -> None:
        """Takes what the runtime noticed."""
        if isinstance(event, RuntimeFailed):
            self._own_error = self._own_error or WorkerFailed(event.sentence)
            return
        due_s = now_s + LAST_WORDS_S if event.spoke else now_s
        self._losses.append(_Loss(frozenset(event.workers), self._lost(event), due_s))

    def verdict(self, now_s: float) -> ServiceError | None:
        """The error that ends the service; None while there is none or it is too early to say."""
        if self._own_error is not None:
            return self._own_error
        if (loss := self._unexplained_loss()) is not None:
            return self._with_witness(loss) if now_s >= loss.due_s else None
        for failed, heard_s in self._lost_a_peer.values():
            if now_s >= heard_s + PEER_EVENT_S or not self._silent():
                return self._failed(failed)
        return None

    def due_s(self) -> float | None:
        """When to ask for the verdict again if nothing new is heard; None for never."""
        if (loss := self._unexplained_loss()) is not None:
            return loss.due_s
        return min((t + PEER_EVENT_S for _, t in self._lost_a_peer.values()), default=None)

    def later(self, heard: Failed | RuntimeEvent) -> str:
        """A line for the log about what is heard after the verdict."""
        match heard:
            case Failed(caused_by_peer=True):
                return f"{heard.name} saw: {heard.error.partition(';')[0]}"
            case Failed():
                return f"{heard.name} said: {heard.error}"
            case _:
                return heard.sentence

    def _unexplained_loss(self) -> _Loss | None:
        """The loss to tell first, of those that the lost workers have given no reason for."""
        losses = [x for x in self._losses if not (x.workers and x.workers <= self._spoke)]
        return min(losses, key=lambda loss: loss.due_s, default=None)

    def _silent(self) -> frozenset[str]:
        """Workers of which nothing was heard yet."""
        return self._workers - self._spoke

    def _with_witness(self, loss: _Loss) -> ServiceError:
        """The error, with what the first of the others saw if that was heard before."""
        for worker, (failed, _) in self._lost_a_peer.items():
            if worker not in loss.workers:
                seen = failed.error.partition(";")[0]
                return type(loss.error)(f"{loss.error}; {failed.name} saw: {seen}")
        return loss.error

    def _failed(self, failed: Failed) -> WorkerFailed:
        what = "failed" if self.stage == "serving" else "could not start"
        return WorkerFailed(f"{failed.name} {what}: {failed.error}")

    def _lost(self, lost: WorkersLost) -> ServiceError:
        return lost.error(f"{lost.sentence} while {self.stage}")
