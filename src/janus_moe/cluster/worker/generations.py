"""The generations of one worker: opened beside the one that is served, committed, or dropped.

Its instances are built once and serve one generation after the other. Which generation follows is
decided elsewhere, and so is what happens when one cannot be opened.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from janus_moe.cluster.worker.exchanges import open_exchanges
from janus_moe.cluster.worker.hosted_instance import Connection, HostedInstance
from janus_moe.cluster.worker.worker_channel import WorkerChannel
from janus_moe.cluster.worker.worker_instances import wait_rule
from janus_moe.errors import JanusError
from janus_moe.experts.pacing import PaceName
from janus_moe.messages import (
    CommitGeneration,
    GenerationCommitted,
    GenerationFailed,
    GenerationOpened,
    GenerationOrder,
    OpenGeneration,
    Setup,
)
from janus_moe.spec import InstanceId
from janus_moe.transport import Exchange

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A generation that this worker may serve.

    exchanges: one for each micro-batch.
    connections: of the worker's members.
    """

    exchanges: Sequence[Exchange]
    connections: dict[InstanceId, Connection]

    def close(self) -> None:
        """Ends the waits of this worker's members and gives back what it holds."""
        for connection in self.connections.values():
            connection.close()
        for exchange in self.exchanges:
            exchange.close()


class Generations:
    """What the main thread of a worker does with generations; exchanges are opened in threads.

    name: of the worker, in its reports.
    setup: of the worker; its membership does not matter here.
    instances: built, and each with a thread in `HostedInstance.serve`.
    channel: takes reports, and is where peers find each other.
    bind_host: the only address that this worker may listen at.
    """

    def __init__(
        self,
        name: str,
        setup: Setup,
        instances: Sequence[HostedInstance],
        channel: WorkerChannel,
        bind_host: str,
    ) -> None:
        self._name = name
        self._setup = setup
        self._instances = {instance.id: instance for instance in instances}
        self._channel = channel
        self._bind_host = bind_host
        self._lock = threading.Lock()
        self._opening: set[int] = set()
        self._opened: dict[int, _Opened] = {}

    def handle(self, order: GenerationOrder) -> None:
        """Carries out one order; never waits for a peer."""
        match order:
            case OpenGeneration(membership=membership):
                with self._lock:
                    self._opening.add(membership.generation)
                name = f"open generation {membership.generation}"
                threading.Thread(target=self._open, args=(order,), name=name, daemon=True).start()
            case CommitGeneration():
                self._commit(order)
            case _:
                self._drop(order.generation)

    def close(self) -> None:
        """Drops all generations; no instance serves any more."""
        with self._lock:
            numbers = [*self._opening, *self._opened]
        for number in numbers:
            self._drop(number)

    def _open(self, order: OpenGeneration) -> None:
        generation = order.membership.generation
        try:
            opened = self._connect(order)
        # A last resort: the end of this thread. The engine waits for an answer, and the generation
        # before is served on.
        except Exception as error:
            if not isinstance(error, JanusError):
                logger.exception("%s could not open generation %d", self._name, generation)
            with self._lock:
                self._opening.discard(generation)
            kind = "" if isinstance(error, JanusError) else f"{type(error).__name__}: "
            self._channel.send(
                GenerationFailed(name=self._name, generation=generation, error=f"{kind}{error}")
            )
            return
        with self._lock:
            wanted = generation in self._opening
            self._opening.discard(generation)
            if wanted:
                self._opened[generation] = opened
        if wanted:
            self._channel.send(GenerationOpened(name=self._name, generation=generation))
        else:
            opened.close()

    def _connect(self, order: OpenGeneration) -> _Opened:
        present = [i for i in self._instances if i in order.membership.instances]
        setup = msgspec.structs.replace(
            self._setup,
            instances=tuple(present),
            membership=order.membership,
            slots=order.slots,
            num_threads=order.num_threads,
        )
        exchanges = open_exchanges(setup, self._channel, self._bind_host)
        try:
            rule = wait_rule(setup)
            pace: PaceName = "full" if order.is_urgent else "steps"
            return _Opened(
                exchanges,
                {i: self._instances[i].connect(setup, exchanges, rule, pace) for i in present},
            )
        except BaseException:
            for exchange in exchanges:
                exchange.close()
            raise

    def _commit(self, order: CommitGeneration) -> None:
        """Members begin once they have left; an instance that is no member only leaves."""
        with self._lock:
            opened = self._opened.get(order.generation)
        connections = {} if opened is None else opened.connections
        for instance in self._instances.values():
            instance.leave(order)
        missing = set(connections)

        def begun(member: InstanceId) -> None:
            with self._lock:
                missing.discard(member)
                last = not missing
            if last:
                self._report_committed(order)

        # In loopback attention instances call the expert instances, which must be there first.
        for member in sorted(connections, key=lambda member: member.pool, reverse=True):
            self._instances[member].begin(connections[member], partial(begun, member))
        if not connections:
            self._report_committed(order)

    def _report_committed(self, order: CommitGeneration) -> None:
        self._channel.send(GenerationCommitted(name=self._name, generation=order.generation))

    def _drop(self, generation: int) -> None:
        with self._lock:
            self._opening.discard(generation)
            opened = self._opened.pop(generation, None)
        if opened is not None:
            opened.close()
        for instance in self._instances.values():
            instance.drop(generation)
