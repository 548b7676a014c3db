"""The HTTP application over an engine. Puts the parts together and decides nothing itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.responses import Response

from janus_moe import __version__
from janus_moe.config import ServerConfig
from janus_moe.engine.text.chat import load_chat_template
from janus_moe.server import experts, scaling, service, tokenization
from janus_moe.server.app_state import AppState, served_name
from janus_moe.server.auth import ApiKeyMiddleware
from janus_moe.server.backend import EngineBackend
from janus_moe.server.chat import chat_completions
from janus_moe.server.completions import completions
from janus_moe.server.errors import install_error_handlers
from janus_moe.server.inflight import InFlightMiddleware, Lifecycle
from janus_moe.server.metrics import Metrics
from janus_moe.server.openapi import describe_bodies
from janus_moe.server.text_workers import TextWorkers

Handler = Callable[[Request, AppState], Awaitable[Response]]

_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/health", service.health),
    ("GET", "/ready", service.ready),
    ("GET", "/ping", service.health),
    ("GET", "/version", service.version),
    ("GET", "/metrics", service.metrics),
    ("GET", "/v1/models", service.models),
    ("GET", "/v1/models/{name:path}", service.model),
    ("POST", "/v1/completions", completions),
    ("POST", "/v1/chat/completions", chat_completions),
    ("POST", "/tokenize", tokenization.tokenize),
    ("POST", "/detokenize", tokenization.detokenize),
    ("GET", "/tokenizer_info", tokenization.tokenizer_info),
    ("GET", "/expert_load", experts.expert_load),
    ("GET", "/expert_placement", experts.expert_placement),
    ("POST", "/rebalance", experts.rebalance),
    ("GET", "/scale", scaling.scale_status),
    ("POST", "/scale", scaling.scale),
    ("DELETE", "/scale", scaling.abort_scale),
)


def make_state(
    backend: EngineBackend, config: ServerConfig, text: TextWorkers | None = None
) -> AppState:
    """Raises ConfigError when the chat template cannot be used."""
    template = None if config.chat_template is None else load_chat_template(config.chat_template)
    return AppState(
        backend=backend,
        config=config,
        lifecycle=Lifecycle(backend),
        metrics=Metrics(backend, served_name(backend, config)),
        chat_template=template,
        text=text or TextWorkers(),
    )


def create_app(state: AppState) -> FastAPI:
    """The ASGI application. It may be served before the engine is ready."""
    hidden = state.config.disable_fastapi_docs
    app = FastAPI(
        title="Janus",
        version=__version__,
        docs_url=None if hidden else "/docs",
        redoc_url=None,
        openapi_url=None if hidden else "/openapi.json",
        redirect_slashes=False,
    )
    for method, path, handler in _ROUTES:
        route = _bound(handler, state)
        app.add_api_route(path, route, methods=[method], response_model=None)
        if method == "GET":  # the same answer; the server leaves out its body
            app.add_api_route(path, route, methods=["HEAD"], include_in_schema=False)
    describe_bodies(app)
    install_error_handlers(app)
    app.add_middleware(InFlightMiddleware, lifecycle=state.lifecycle)
    if state.config.api_key is not None:
        app.add_middleware(ApiKeyMiddleware, api_key=state.config.api_key)
    return app


def _bound(handler: Handler, state: AppState) -> Callable[[Request], Awaitable[Response]]:
    async def route(request: Request) -> Response:
        return await handler(request, state)

    route.__name__ = handler.__name__
    route.__doc__ = handler.__doc__
    return route
