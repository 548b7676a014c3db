"""Control messages between the engine and its workers: who gets what, and who is told.

The router decodes what comes, drops what no worker of the service sent, and passes on the values by
which instances find each other. It does not know how bytes travel or what messages mean to
requests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec
import zmq

from janus_moe.engine.engine import Workers
from janus_moe.errors import ServiceError
from janus_moe.messages import (
    Failed,
    FromWorker,
    Message,
    StorePut,
    ToInstance,
    ToWorker,
    decode_from_worker,
)
from janus_moe.spec import InstanceId

Post = Callable[[bytes, Message], None]
OnFailed = Callable[[str, Failed], None]
OnForeign = Callable[[bytes, bytes], None]
OnMessage = Callable[[FromWorker], None]


class ObservableWorkers(Workers, Protocol):
    """Workers whose messages others than the engine see as well."""

    @property
    def on_message(self) -> list[OnMessage]:
        """What is called with every message of the workers."""


class MessageRouter:
    """Routes the messages of one service. One asyncio loop uses it.

    post: sends to an identity; raises ZMQError when it cannot be reached.
    worker_of: instance -> name of the worker that hosts it.
    titles: worker name -> the same with its host, for people.
    on_failed: called with a worker's name and its last message when it fails.
    foreign: prefix of the identities of processes that are no workers -> what takes their messages.
    on_message: called with every other message, in this order.
    """

    def __init__(
        self,
        post: Post,
        worker_of: Mapping[InstanceId, str],
        titles: Mapping[str, str],
        on_failed: OnFailed,
        foreign: Mapping[bytes, OnForeign],
    ) -> None:
        self.on_message: list[OnMessage] = []
        self._post = post
        self._worker_of = dict(worker_of)
        self._titles = dict(titles)
        self._on_failed = on_failed
        self._foreign = foreign
        self._greeted: list[str] = []
        self._store: dict[str, StorePut] = {}

    def send(self, message: ToInstance) -> None:
        """Sends a message to the worker that hosts the instance it is for; raises ServiceError.

        A worker that is gone gets none: that it is gone is for others to notice.
        """
        worker = self._worker_of.get(message.instance)
        if worker is None:
            return
        try:
            self.post(worker, message)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise ServiceError(f"{self._titles[worker]} cannot be reached: {error}") from None

    def add(self, worker: str, title: str, instances: Sequence[InstanceId]) -> None:
        """Takes messages from a worker, and sends it those for its instances."""
        self._titles[worker] = title
        self._worker_of |= dict.fromkeys(instances, worker)

    def remove(self, worker: str) -> None:
        """Believes nothing that a worker says from now on, and sends it nothing."""
        self._titles.pop(worker, None)
        for instance in [i for i, home in self._worker_of.items() if home == worker]:
            del self._worker_of[instance]
        if worker in self._greeted:
            self._greeted.remove(worker)

    def forget(self, generation: int) -> None:
        """Drops the values by which the members of a generation found each other."""
        part = f"#generation {generation}#"
        for key in [key for key in self._store if part in f"{key}#"]:
            del self._store[key]

    def post(self, worker: str, message: ToWorker) -> None:
        """Sends a message to a worker; raises ZMQError when it cannot be reached."""
        self._post(worker.encode(), message)

    def greet(self, worker: str, setup: ToWorker) -> None:
        """Sets up a worker that has said hello, and tells it what the others have put so far."""
        self.post(worker, setup)
        for put in self._store.values():
            self.post(worker, put)
        self._greeted.append(worker)

    def route(self, identity: bytes, content: bytes) -> None:
        """Takes one message off the channel."""
        for prefix, take in self._foreign.items():
            if identity.startswith(prefix):
                take(identity, content)
                return
        worker = identity.decode(errors="replace")
        if worker not in self._titles:
            return
        try:
            message = decode_from_worker(content)
        except msgspec.DecodeError as error:
            message = Failed(name=worker, error=f"unreadable message: {error}")
        match message:
            case StorePut():
                self._pass_on(worker, message)
            case Failed():
                self._on_failed(worker, message)
            case _:
                for take_message in self.on_message:
                    take_message(message)

    def _pass_on(self, sender: str, put: StorePut) -> None:
        self._store[put.key] = put
        for worker in self._greeted:
            if worker != sender:
                with contextlib.suppress(zmq.ZMQError):  # the runtime notices that it is gone
                    self.post(worker, put)
