"""Server-sent events that stop the work as soon as the client is gone.

The status line waits for the first event, so a request that is refused late is still answered
with the right status; after that an error becomes an event and ends the stream.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from janus_moe.server.errors import ClientDisconnected, to_api_error
from janus_moe.server.inflight import Lifecycle, while_connected

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EventStream(Response):
    """Sends each item of `events` as the data of one event."""

    def __init__(self, events: AsyncGenerator[bytes], lifecycle: Lifecycle) -> None:
        super().__init__()
        self._events = events
        self._lifecycle = lifecycle
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._lifecycle, self._send_all(send))
        except ClientDisconnected:
            return
        # A last resort: no other chance to tell the client; `to_api_error` logs the unexpected.
        except Exception as error:
            problem = to_api_error(error)
            if not self._started:
                await problem.response()(scope, receive, send)
                return
            await self._send_event(send, msgspec.json.encode(problem.body))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            async for data in events:
                if not self._started:
                    self._started = True
                    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                await self._send_event(send, data)

    async def _send_event(self, send: Send, data: bytes) -> None:
        body = b"data: " + data + b"\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})
