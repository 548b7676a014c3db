"""Generation requests under way: refused unless the engine is ready, counted until answered.

Also the race every one of them runs: its work against the client going away and against the end
of the shutdown's patience.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from janus_moe.server.backend import EngineBackend, Status
from janus_moe.server.errors import ApiError, ClientDisconnected, unavailable

GENERATION_PATHS = frozenset({"/v1/completions", "/v1/chat/completions"})

T = TypeVar("T")


class Lifecycle:
    """Whether requests are taken, and how many are under way."""

    def __init__(self, backend: EngineBackend) -> None:
        self._backend = backend
        self._draining = False
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.out_of_patience = asyncio.Event()

    @property
    def status(self) -> Status:
        if self._draining and self._backend.status != "dead":
            return "draining"
        return self._backend.status

    @property
    def num_requests(self) -> int:
        return self._count

    def start_draining(self) -> None:
        self._draining = True

    async def drained(self) -> None:
        """Returns when no request is under way."""
        await self._idle.wait()

    def require_ready(self) -> None:
        """Raises the 503 that tells a client why it is refused."""
        if self.status != "ready":
            raise self._refusal()

    def _refusal(self) -> ApiError:
        return unavailable(f"the server is {self.status} and takes no requests")

    def enter(self) -> None:
        self._count += 1
        self._idle.clear()

    def leave(self) -> None:
        self._count -= 1
        if self._count == 0:
            self._idle.set()


class InFlightMiddleware:
    """Refuses and counts generation requests; one is under way until its last byte is sent."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self._app = app
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in GENERATION_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            self._lifecycle.require_ready()
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        self._lifecycle.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            self._lifecycle.leave()


async def while_connected(
    receive: Receive, lifecycle: Lifecycle, work: Coroutine[Any, Any, T]
) -> T:
    """The result of `work`, cancelled as soon as the client is gone or the shutdown gives up.

    The request's body must have been read. Raises ClientDisconnected or a 503.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnect(receive))
    ending = asyncio.create_task(lifecycle.out_of_patience.wait())
    tasks = (working, leaving, ending)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if leaving.done():
            raise ClientDisconnected
        raise unavailable("the server shut down before the request was finished")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
