"""Adds the request bodies to the OpenAPI description: the routes read them themselves."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI

from janus_moe.server.requests import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    RebalanceBody,
    ScaleBody,
    TokenizeBody,
)

_BODIES: dict[str, type] = {
    "/v1/completions": CompletionBody,
    "/v1/chat/completions": ChatBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
    "/rebalance": RebalanceBody,
    "/scale": ScaleBody,
}


def describe_bodies(app: FastAPI) -> None:
    plain = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _with_bodies(plain())
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _with_bodies(document: dict[str, Any]) -> dict[str, Any]:
    schemas, components = msgspec.json.schema_components(
        _BODIES.values(), ref_template="#/components/schemas/{name}"
    )
    document.setdefault("components", {}).setdefault("schemas", {}).update(components)
    for path, schema in zip(_BODIES, schemas, strict=True):
        content = {"application/json": {"schema": schema}}
        document["paths"][path]["post"]["requestBody"] = {
            "required": path != "/rebalance",
            "content": content,
        }
    return document
