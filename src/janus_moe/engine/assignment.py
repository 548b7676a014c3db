"""Which attention instance computes each request, from its admission to its end.

A request is given to one instance at a time. When that instance is lost or is to be emptied, the
request is admitted elsewhere with its prompt and what it has produced. This module does not know
how messages travel, what tokens mean, or why an instance goes.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from janus_moe.engine.load import InstanceLoads
from janus_moe.engine.request import RequestRecord
from janus_moe.errors import ServiceError
from janus_moe.messages import AbortRequest, ToInstance
from janus_moe.spec import InstanceId


class RequestAssignment:
    """Gives every request to an attention instance, or keeps it waiting while none takes requests.

    loads: the attention instances and what they have to do.
    eos_token_ids: of the model.
    send: takes a message to its instance; raises ServiceError when that cannot be reached.
    clock: seconds, never falling.
    """

    def __init__(
        self,
        loads: InstanceLoads,
        eos_token_ids: tuple[int, ...],
        send: Callable[[ToInstance], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.loads = loads
        self._eos_token_ids = eos_token_ids
        self._send = send
        self._clock = clock
        self._records: dict[str, RequestRecord] = {}  # in order of arrival
        self._numbers = itertools.count(1)
        self._emptied: dict[InstanceId, asyncio.Event] = {}
        self._lost: set[InstanceId] = set()

    @property
    def waiting(self) -> list[RequestRecord]:
        """Requests that no instance has, in order of arrival."""
        return [record for record in self._records.values() if record.instance is None]

    def admit(self, record: RequestRecord, instance: InstanceId | None = None) -> None:
        """Takes a new request.

        instance: where it goes; None means where the load suggests.
        """
        record.arrived_at = self._clock()
        self._records[record.request_id] = record
        self._place(record, instance or self.loads.choose(record.prompt_ids))

    def started(self, record: RequestRecord) -> None:
        """A request has its prompt in the cache of its instance."""
        if record.unstarted_tokens and record.instance is not None:
            self.loads.started(record.instance, record.unstarted_tokens)
            record.unstarted_tokens = 0

    def abort(self, record: RequestRecord) -> None:
        """Tells the instance that has a request to forget it."""
        if record.instance is None:
            return
        message = AbortRequest(
            instance=record.instance, request_id=record.request_id, admission=record.admission
        )
        with suppress(ServiceError):  # what is gone has forgotten it already
            self._send(message)

    def release(self, record: RequestRecord) -> None:
        """A request has ended; it weighs on no instance any more."""
        if self._records.get(record.request_id) is record:
            del self._records[record.request_id]
            self._detach(record)

    def again(self, record: RequestRecord) -> None:
        """Aborts a request where it is and admits it anew, there or elsewhere."""
        self.abort(record)
        self._detach(record)
        self._place(record, self.loads.choose(record.prompt_ids))

    def readmit(self, instance: InstanceId) -> int:
        """An instance is lost for ever: its requests go elsewhere; how many they are."""
        self._lost.add(instance)
        self.loads.remove(instance)
        return self._move([r for r in self._records.values() if r.instance == instance])

    def move(self, instance: InstanceId) -> int:
        """The requests of an instance are aborted there and go elsewhere; how many they are."""
        self.drain(instance)
        records = [r for r in self._records.values() if r.instance == instance]
        for record in records:
            self.abort(record)
        return self._move(records)

    def drain(self, instance: InstanceId) -> asyncio.Event:
        """An instance gets no more requests; set once it has none."""
        self.loads.close(instance)
        emptied = self._emptied.setdefault(instance, asyncio.Event())
        self._tell_if_empty(instance)
        return emptied

    def resume(self, instance: InstanceId) -> None:
        """An instance that was to be emptied takes requests again."""
        self._emptied.pop(instance, None)
        self.loads.open(instance)
        self._place_waiting()

    def use_members(self, members: Iterable[InstanceId]) -> int:
        """Other attention instances from now on; how many requests had none of them."""
        self.loads.use_members(one for one in members if one not in self._lost)
        gone = [
            record
            for record in self._records.values()
            if record.instance is not None and record.instance not in self.loads.observed
        ]
        num_moved = self._move(gone)
        for instance in self._emptied.keys() - self.loads.observed.keys():
            self._emptied.pop(instance).set()
        self._place_waiting()
        return num_moved

    def _move(self, records: list[RequestRecord]) -> int:
        for record in records:
            self._detach(record)
        for record in records:
            self._place(record, self.loads.choose(record.prompt_ids))
        return len(records)

    def _place_waiting(self) -> None:
        for record in self.waiting:
            self._place(record, self.loads.choose(record.prompt_ids))

    def _place(self, record: RequestRecord, instance: InstanceId | None) -> None:
        """Admits a request to an instance; with None it waits until there is one."""
        if instance is None:
            return
        record.instance = instance
        record.admission = next(self._numbers)
        record.held_s = self._clock() - record.arrived_at
        message = record.add_request(instance, self._eos_token_ids)
        record.unstarted_tokens = len(message.prompt_ids)
        self.loads.sent(instance, record.unstarted_tokens)
        with suppress(ServiceError):  # lost: once that is known, the request goes elsewhere
            self._send(message)

    def _detach(self, record: RequestRecord) -> None:
        """Takes a request off its instance; what that still says of it is of no admission."""
        instance = record.instance
        if instance is None:
            return
        self.started(record)
        self.loads.ended(instance)
        record.instance, record.admission = None, 0
        self._tell_if_empty(instance)

    def _tell_if_empty(self, instance: InstanceId) -> None:
        emptied = self._emptied.get(instance)
        if emptied is not None and self.loads.num_requests(instance) == 0:
            emptied.set()
