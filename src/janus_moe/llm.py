"""Completing prompts without HTTP: the same engine and workers behind two plain calls.

from janus_moe import LLM, generate

generate(["def main("], max_tokens=32)[0].text

with LLM(expert_instances=2) as llm:
    for completion in llm.generate(["import os", "class "], temperature=0):
        print(completion.text)

It does not know HTTP, nor how tokens are made.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec

from janus_moe.cluster.service import Service
from janus_moe.config import EngineConfig
from janus_moe.engine.admission import admit
from janus_moe.engine.engine import Engine
from janus_moe.errors import RequestError, ServiceError
from janus_moe.messages import SamplingParams, TokenLogprob
from janus_moe.settings import build
from janus_moe.startup_view import StartupView

QUIET_S = 5.0
"""Seconds that a start may take before it says what it is doing."""
Prompt = str | Sequence[int]


@dataclass(slots=True)
class Completion:
    """One prompt and what became of it.

    prompt: as it was given
    prompt_ids: its token ids
    logprobs: one entry per token of `token_ids`; empty where they were not asked for
    finish_reason: "stop" or "length"
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str = ""


class LLM:
    """A running service, used from ordinary (not async) code; close it, or use it in `with`.

    view: shows how the start goes; None means one that prints once it takes longer
    check: called before anything is started; what it raises ends the start. None checks nothing
    settings: fields of `EngineConfig`, e.g. model="bundled", attention_instances=1

    Raises ConfigError or CheckpointError before anything is started, ServiceError when the
    workers cannot start.
    """

    def __init__(
        self,
        *,
        view: StartupView | None = None,
        check: Callable[[Engine], None] | None = None,
        **settings: Any,
    ) -> None:
        with view or StartupView(quiet_s=QUIET_S) as view:
            self._start_up(view, check, settings)

    def _start_up(
        self,
        view: StartupView,
        check: Callable[[Engine], None] | None,
        settings: dict[str, Any],
    ) -> None:
        self._service = Service.prepare(build(EngineConfig, settings))
        if check is not None:
            check(self._service.engine)
        view.plan(self._service.plan)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="janus", daemon=True)
        self._thread.start()
        self._counter = 0
        try:
            self._running: asyncio.Task[None] = self._call(self._start(view))
        except BaseException:
            self._end_loop()
            raise

    def generate(
        self, prompts: Sequence[Prompt], stop: Sequence[str] = (), **sampling: Any
    ) -> list[Completion]:
        """Completes all prompts together, in their order.

        prompts: texts, or token ids
        stop: texts that end a completion
        sampling: fields of `SamplingParams`, e.g. max_tokens=64, temperature=0, seed=1

        Raises RequestError for an invalid prompt or parameter.
        """
        if isinstance(prompts, str) or isinstance(stop, str):
            raise RequestError("prompts and stop are lists of texts; put a single text in a list")
        params = build(SamplingParams, sampling)
        completions: list[Completion] = self._call(self._generate(prompts, params, tuple(stop)))
        return completions

    def close(self) -> None:
        """Stops the workers; returns when none is left. Safe to call twice."""
        if self._thread.is_alive():
            self._call(self._stop())
            self._end_loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _start(self, view: StartupView) -> asyncio.Task[None]:
        ready = asyncio.Event()
        running = asyncio.create_task(self._service.run(ready, view.progress))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if running.done():
            running.result()
            raise ServiceError("the service ended before it was ready")
        return running

    async def _generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, stop: tuple[str, ...]
    ) -> list[Completion]:
        completions = _empty_completions(self._service.engine, prompts)
        async with asyncio.TaskGroup() as group:
            for index, completion in enumerate(completions):
                group.create_task(self._fill(completion, _own(params, index), stop))
        return completions

    async def _fill(
        self, completion: Completion, params: SamplingParams, stop: tuple[str, ...]
    ) -> None:
        self._counter += 1
        request_id = f"offline-{self._counter}"
        engine = self._service.engine
        async for chunk in engine.submit(request_id, completion.prompt_ids, params, stop):
            completion.text += chunk.text
            completion.token_ids += chunk.token_ids
            completion.logprobs += chunk.logprobs or ()
            completion.finish_reason = chunk.finish_reason or ""

    async def _stop(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    def _call(self, coroutine: Any) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseExceptionGroup as group:  # several prompts failed: the first one tells enough
            raise group.exceptions[0] from None

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def generate(
    prompts: Sequence[Prompt],
    model: str = "bundled",
    *,
    stop: Sequence[str] = (),
    settings: dict[str, Any] | None = None,
    **sampling: Any,
) -> list[Completion]:
    """Starts a service, completes the prompts, stops the service.

    settings: fields of `EngineConfig` besides the model
    sampling: fields of `SamplingParams`
    """

    def check(engine: Engine) -> None:
        require_servable(engine, prompts, sampling)

    with LLM(check=check, model=model, **(settings or {})) as llm:
        return llm.generate(prompts, stop, **sampling)


def require_servable(engine: Engine, prompts: Sequence[Prompt], sampling: dict[str, Any]) -> None:
    """Raises ConfigError or RequestError for requests that can never be served.

    engine: need not be running
    sampling: fields of `SamplingParams`
    """
    params, most = build(SamplingParams, sampling), engine.config.max_queue
    if len(prompts) > most:
        raise RequestError(
            f"{len(prompts)} prompts are more than the {most} that are held at once; raise "
            "--max-queue or give fewer"
        )
    for index, one in enumerate(_empty_completions(engine, prompts)):
        admit(one.prompt_ids, _own(params, index), engine.limits)


def _empty_completions(engine: Engine, prompts: Sequence[Prompt]) -> list[Completion]:
    encode = engine.tokenizer.encode
    return [Completion(p, tuple(encode(p) if isinstance(p, str) else p)) for p in prompts]


def _own(params: SamplingParams, index: int) -> SamplingParams:
    """Returns the parameters of one prompt: each has a seed of its own, as samples have."""
    seed = None if params.seed is None else (params.seed + index) % 2**63
    return msgspec.structs.replace(params, seed=seed)
