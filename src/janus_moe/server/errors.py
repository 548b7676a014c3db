"""Errors in OpenAI's shape. Only messages written for clients leave the process.

Anything unexpected becomes a 500 without its text; the log has the rest.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from janus_moe.errors import (
    ConflictError,
    ExchangeError,
    OverloadedError,
    RequestError,
    ServiceError,
)

logger = logging.getLogger(__name__)

_PHRASES = {404: "no such route: {path}", 405: "{method} is not allowed on {path}"}


class ApiError(Exception):
    """An answer other than 200, as the client will see it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body: dict[str, Any] = {
            "error": {"message": message, "type": kind, "param": param, "code": code}
        }

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, headers=self.headers)


class ClientDisconnected(Exception):
    """The client has closed its connection."""


def to_api_error(error: Exception) -> ApiError:
    """What a client is told about any exception."""
    match error:
        case ApiError():
            return error
        case RequestError():
            return ApiError(400, str(error), param=error.param)
        case ConflictError():
            return ApiError(409, str(error), kind="conflict_error", code="conflict")
        case OverloadedError():
            wait = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
            message = "the server is full, try again later"
            return ApiError(429, message, kind="overloaded_error", code="overloaded", headers=wait)
        case ServiceError() | ExchangeError():
            logger.error("request failed: %s", error)
            message = "the service cannot answer requests now"
            if isinstance(error, ServiceError) and error.retry_after_s is not None:
                return unavailable(message, error.retry_after_s)
            return unavailable(message)
        case HTTPException():
            return ApiError(error.status_code, str(error.detail), headers=error.headers)
    logger.error("unexpected error while answering a request", exc_info=error)
    return ApiError(500, "internal server error", kind="internal_error", code="internal_error")


def unavailable(message: str, retry_after_s: float = 5) -> ApiError:
    return ApiError(
        503,
        message,
        kind="service_unavailable_error",
        code="unavailable",
        headers={"Retry-After": str(max(1, math.ceil(retry_after_s)))},
    )


def install_error_handlers(app: FastAPI) -> None:
    """All of the app's errors, its router's included, in one shape."""

    async def routing_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        phrase = _PHRASES.get(error.status_code, str(error.detail))
        message = phrase.format(method=request.method[:20], path=request.url.path[:200])
        return ApiError(error.status_code, message, headers=error.headers).response()

    async def any_error(request: Request, error: Exception) -> Response:
        return to_api_error(error).response()

    async def client_left(request: Request, error: Exception) -> Response:
        return Response(status_code=499)

    app.add_exception_handler(HTTPException, routing_error)
    app.add_exception_handler(ClientDisconnected, client_left)
    refusals = (ApiError, RequestError, ConflictError, OverloadedError)
    for kind in (*refusals, ServiceError, ExchangeError, Exception):
        app.add_exception_handler(kind, any_error)
