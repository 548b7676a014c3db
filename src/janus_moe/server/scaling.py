"""/scale: the pools of a running service, and changing their sizes."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import Response

from janus_moe.engine.scale_controller import ScaleController
from janus_moe.errors import ConflictError
from janus_moe.server.app_state import AppState
from janus_moe.server.parsing import parse, read_body
from janus_moe.server.requests import ScaleBody
from janus_moe.server.responses import json_response


async def scale_status(request: Request, state: AppState) -> Response:
    """Members, generation, phase, progress, last error and history of changes."""
    state.lifecycle.require_ready()
    return json_response(_controller(state).status())


async def scale(request: Request, state: AppState) -> Response:
    """Begins a change to other pool sizes; sizes that are left out stay as they should be."""
    state.lifecycle.require_ready()
    body = parse(await read_body(request, state.config.max_body_bytes), ScaleBody)
    controller = _controller(state)
    controller.scale(body.attention, body.expert, body.drain_timeout)
    return json_response(controller.status(), 202)


async def abort_scale(request: Request, state: AppState) -> Response:
    """Gives up the change under way."""
    state.lifecycle.require_ready()
    _controller(state).abort()
    return json_response(_controller(state).status(), 202)


def degraded(state: AppState) -> str:
    """Why the pools are smaller than they should be; "" when they are not."""
    controller = state.backend.scale_controller
    if controller is None or state.backend.status != "ready":
        return ""
    why: Any = controller.status()["degraded"]
    return str(why)


def _controller(state: AppState) -> ScaleController:
    controller = state.backend.scale_controller
    if controller is None:
        raise ConflictError(
            "the pools of this service cannot change: that needs a process for each instance on "
            "this host; start it with --transport shm (or gloo) and without --hosts"
        )
    return controller
