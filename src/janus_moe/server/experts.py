"""/expert_load, /expert_placement and /rebalance: what the expert pool does, and moving it."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import Request
from fastapi.responses import Response

from janus_moe.server.app_state import AppState
from janus_moe.server.parsing import parse, read_body
from janus_moe.server.requests import RebalanceBody
from janus_moe.server.responses import json_response


async def expert_load(request: Request, state: AppState) -> Response:
    """Tokens routed to each expert lately, and how many experts each instance activated."""
    state.lifecycle.require_ready()
    controller, snapshot = state.backend.placement_controller, state.backend.snapshot()
    layers: list[dict[str, Any]] = []
    if (load := controller.load) is not None:
        rows = zip(load.num_batches, load.num_tokens, load.tokens, strict=True)
        for layer, (batches, tokens, counts) in zip(
            state.backend.spec.moe_layer_ids, rows, strict=True
        ):
            layers.append(
                {
                    "layer": layer,
                    "batches": batches,
                    "tokens": tokens,
                    "counts": counts,
                    "share": [count / max(1, tokens) for count in counts],
                }
            )
    return json_response(
        {
            "layers": layers,
            "activated_experts_per_instance": list(snapshot.activated_experts.values()),
            "imbalance": snapshot.expert_load_imbalance,
        }
    )


async def expert_placement(request: Request, state: AppState) -> Response:
    """Which experts are where, and how a rebalance is coming along."""
    state.lifecycle.require_ready()
    controller = state.backend.placement_controller
    layers = [
        {
            "layer": layer,
            "instances": instances,
            "replicas": controller.placement.replicas(number).tolist(),
        }
        for number, (layer, instances) in enumerate(
            zip(state.backend.spec.moe_layer_ids, controller.placement.slots, strict=True)
        )
    ]
    return json_response(
        {
            "epoch": controller.placement.epoch,
            "num_experts": controller.placement.num_experts,
            "layers": layers,
            "rebalance": _status(state),
        }
    )


async def rebalance(request: Request, state: AppState) -> Response:
    """Starts moving experts: to the placement of the body, or to what suits the load."""
    state.lifecycle.require_ready()
    raw = await read_body(request, state.config.max_body_bytes)
    body = parse(raw, RebalanceBody) if raw.strip() else RebalanceBody()
    await state.backend.placement_controller.rebalance(body.placement)
    return json_response(_status(state), 202)


def _status(state: AppState) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(state.backend.placement_controller.status)
    return fields
