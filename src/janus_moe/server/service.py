"""Routes about the service itself: health, version, models, metrics."""

from __future__ import annotations

import math
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from janus_moe import __version__
from janus_moe.server.app_state import AppState
from janus_moe.server.scaling import degraded


async def health(request: Request, state: AppState) -> Response:
    """200 when requests are taken. Needs no key, so an error's details stay in the log."""
    status = state.lifecycle.status
    answer: dict[str, str] = {"status": status}
    if status == "loading":
        answer["detail"] = state.backend.status_detail
    if why := degraded(state):
        answer["degraded"] = why
    return JSONResponse(answer, 200 if status == "ready" else 503)


async def ready(request: Request, state: AppState) -> Response:
    """200 when requests are taken, also 503 while a fault lasts so long that they are refused."""
    refusal = state.backend.refusal
    if state.lifecycle.status != "ready" or refusal is None:
        return await health(request, state)
    wait = {"Retry-After": str(max(1, math.ceil(refusal.retry_after_s)))}
    return JSONResponse({"status": "refusing", "detail": refusal.reason}, 503, wait)


async def version(request: Request, state: AppState) -> Response:
    return JSONResponse({"version": __version__})


async def models(request: Request, state: AppState) -> Response:
    state.require_loaded()
    return JSONResponse({"object": "list", "data": [_model_card(state)]})


async def model(request: Request, state: AppState) -> Response:
    state.require_loaded()
    name = str(request.path_params["name"])
    state.check_model(name)
    return JSONResponse(_model_card(state))


async def metrics(request: Request, state: AppState) -> Response:
    return Response(state.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _model_card(state: AppState) -> dict[str, Any]:
    return {
        "id": state.model_name,
        "object": "model",
        "created": state.started_at,
        "owned_by": "janus",
        "root": state.model_name,
        "parent": None,
        "max_model_len": state.backend.max_model_len,
    }
