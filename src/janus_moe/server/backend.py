"""What the HTTP side needs of an engine, and nothing more. Any object of this shape is served."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from janus_moe.config import EngineConfig
from janus_moe.engine.chunks import FinishReason, Status, TokenChunk
from janus_moe.engine.placement_controller import PlacementController
from janus_moe.engine.refusal import Refusal
from janus_moe.engine.scale_controller import ScaleController
from janus_moe.engine.snapshot import DurationTotal, EngineSnapshot
from janus_moe.engine.text.tokenizer import Tokenizer
from janus_moe.messages import SamplingParams
from janus_moe.spec import ModelSpec

__all__ = [
    "DurationTotal",
    "EngineBackend",
    "EngineSnapshot",
    "FinishReason",
    "Status",
    "TokenChunk",
    "TokenStream",
]


class TokenStream(Protocol):
    """Chunks of one request until its finish reason; `aclose` aborts the request."""

    def __aiter__(self) -> AsyncIterator[TokenChunk]: ...

    async def __anext__(self) -> TokenChunk: ...

    async def aclose(self) -> None: ...


class EngineBackend(Protocol):
    """An engine. Only `config`, `status` and `status_detail` are read before it is ready."""

    @property
    def config(self) -> EngineConfig: ...

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def max_model_len(self) -> int: ...

    @property
    def status(self) -> Status: ...

    @property
    def status_detail(self) -> str: ...

    @property
    def placement_controller(self) -> PlacementController: ...

    @property
    def scale_controller(self) -> ScaleController | None: ...

    @property
    def refusal(self) -> Refusal | None: ...

    def submit(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        stop: tuple[str, ...],
    ) -> TokenStream:
        """Raises RequestError, OverloadedError or ServiceError, at once or while iterating."""

    def snapshot(self) -> EngineSnapshot: ...
