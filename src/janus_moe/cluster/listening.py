"""Workers whose messages somebody else sees as well."""

from __future__ import annotations

from collections.abc import Callable

from janus_moe.engine.engine import Workers
from janus_moe.messages import FromWorker, ToInstance


class Listening:
    """`engine.Workers` that shows `hear` every message that comes from them."""

    def __init__(self, workers: Workers, hear: Callable[[FromWorker], None]) -> None:
        self._workers = workers
        self._hear = hear

    def send(self, message: ToInstance) -> None:
        self._workers.send(message)

    async def receive(self) -> FromWorker:
        message = await self._workers.receive()
        self._hear(message)
        return message

    async def close(self) -> None:
        await self._workers.close()
