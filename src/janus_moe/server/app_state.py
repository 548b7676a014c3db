"""What every route needs, in one value."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from janus_moe.config import ServerConfig
from janus_moe.server.backend import EngineBackend
from janus_moe.server.errors import ApiError, unavailable
from janus_moe.server.inflight import Lifecycle
from janus_moe.server.metrics import Metrics
from janus_moe.server.text_workers import TextWorkers


@dataclass(frozen=True, kw_only=True)
class AppState:
    """Shared by all routes of one app.

    chat_template: the operator's, None for the checkpoint's own.
    wall_clock: seconds since 1970; monotonic: seconds for measuring.
    """

    backend: EngineBackend
    config: ServerConfig
    lifecycle: Lifecycle
    metrics: Metrics
    chat_template: str | None = None
    text: TextWorkers = field(default_factory=TextWorkers)
    wall_clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    started_at: int = field(default_factory=lambda: int(time.time()))

    @property
    def model_name(self) -> str:
        return served_name(self.backend, self.config)

    def require_loaded(self) -> None:
        """Raises a 503 while there is no tokenizer yet."""
        if self.lifecycle.status == "loading":
            raise unavailable("the server is loading the model")

    def check_model(self, name: str | None) -> None:
        """Raises the 404 for any model but the served one."""
        if name is not None and name != self.model_name:
            raise ApiError(
                404,
                f"the model {name[:200]!r} does not exist; this server has {self.model_name!r}",
                param="model",
                code="model_not_found",
            )


def served_name(backend: EngineBackend, config: ServerConfig) -> str:
    return config.served_model_name or backend.config.model


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(16)}"
