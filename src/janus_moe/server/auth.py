"""The API key: every route but the health probes needs it when one is set."""

from __future__ import annotations

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from janus_moe.server.errors import ApiError

OPEN_PATHS = frozenset({"/health", "/ready", "/ping"})


class ApiKeyMiddleware:
    """Answers 401 unless `Authorization: Bearer KEY` carries the key."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._expected = _digest(api_key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            401,
            "a valid API key is required: send it as 'Authorization: Bearer KEY'",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error.response()(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        # Headers arrive as Latin-1. Digests have one length, so even the key's stays unknown.
        matches = hmac.compare_digest(_digest(key.strip().encode("latin-1")), self._expected)
        return matches and scheme.lower() == "bearer"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
