"""POST /v1/completions."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import Response

from janus_moe.server.app_state import AppState, new_id
from janus_moe.server.backend import TokenChunk
from janus_moe.server.jobs import EngineJob
from janus_moe.server.logprobs import CompletionLogprobs
from janus_moe.server.parsing import parse, read_body
from janus_moe.server.prompts import (
    DEFAULT_COMPLETION_TOKENS,
    TokenizedPrompt,
    check_logprobs,
    check_sampling,
    completion_prompts,
    make_jobs,
)
from janus_moe.server.requests import CompletionBody
from janus_moe.server.responses import GenerationResponse, respond


async def completions(request: Request, state: AppState) -> Response:
    arrival_s = state.monotonic()
    body = parse(await read_body(request, state.config.max_body_bytes), CompletionBody)
    state.check_model(body.model)
    check_sampling(body, state.config, state.backend.spec.vocab_size)
    check_logprobs("logprobs", body.logprobs, state.config)
    prompts = await state.text.run(lambda: completion_prompts(state.backend, body))
    jobs = make_jobs(
        state.backend,
        body,
        prompts,
        default_max_tokens=DEFAULT_COMPLETION_TOKENS,
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
    )
    request_id = new_id("cmpl")
    generation = GenerationResponse(
        state=state,
        request_id=request_id,
        arrival_s=arrival_s,
        head={
            "id": request_id,
            "object": "text_completion",
            "created": int(state.wall_clock()),
            "model": state.model_name,
        },
        stream_object="text_completion",
        jobs=jobs,
        choices=[CompletionChoice(job, prompts[job.prompt_index], body, state) for job in jobs],
    )
    return await respond(request, generation, body)


class CompletionChoice:
    """One choice: the echoed prompt comes with its first delta."""

    def __init__(
        self, job: EngineJob, prompt: TokenizedPrompt, body: CompletionBody, state: AppState
    ) -> None:
        self._job = job
        self._prompt = prompt
        self._body = body
        self._logprobs = CompletionLogprobs(state.backend.tokenizer)
        self._prompt_shown = False
        self._whole: dict[str, Any] = {"index": job.index, "text": "", "logprobs": None}

    def deltas(self, chunk: TokenChunk) -> list[dict[str, Any]]:
        first = not self._prompt_shown
        text, logprobs = chunk.text, self._new_logprobs(chunk)
        if first and self._body.echo:
            text = self._prompt.text + text
        delta: dict[str, Any] = {
            "index": self._job.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": chunk.finish_reason,
            "stop_reason": chunk.stop_reason,
        }
        if self._body.return_token_ids:
            delta["token_ids"] = list(chunk.token_ids)
            if first:
                delta["prompt_token_ids"] = list(self._job.prompt_ids)
        self._prompt_shown = True
        self._add(delta)
        worth_sending = text or logprobs or chunk.finish_reason or delta.get("token_ids")
        return [delta] if worth_sending else []

    def whole(self) -> dict[str, Any]:
        return self._whole

    def _new_logprobs(self, chunk: TokenChunk) -> dict[str, list[Any]] | None:
        if self._body.logprobs is None:
            return None
        shown: list[dict[str, list[Any]]] = []
        if self._body.echo and chunk.prompt_logprobs is not None:
            shown.append(self._logprobs.delta(self._job.prompt_ids, chunk.prompt_logprobs))
        if chunk.logprobs:
            shown.append(self._logprobs.delta(chunk.token_ids, chunk.logprobs))
        if not shown:
            return None
        return {key: [entry for part in shown for entry in part[key]] for key in shown[0]}

    def _add(self, delta: dict[str, Any]) -> None:
        """Puts a delta at the end of the whole."""
        whole = self._whole
        whole["text"] += delta["text"]
        if delta["logprobs"] is not None:
            parts = whole["logprobs"] = whole["logprobs"] or {key: [] for key in delta["logprobs"]}
            for key, entries in delta["logprobs"].items():
                parts[key] += entries
        if "token_ids" in delta:
            whole["token_ids"] = whole.get("token_ids", []) + delta["token_ids"]
        for key in ("prompt_token_ids", "finish_reason", "stop_reason"):
            if key in delta:
                whole[key] = delta[key]
