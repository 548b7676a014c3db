"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import Response

from janus_moe.errors import RequestError
from janus_moe.server.app_state import AppState, new_id
from janus_moe.server.backend import TokenChunk
from janus_moe.server.jobs import EngineJob
from janus_moe.server.logprobs import chat_logprobs
from janus_moe.server.parsing import parse, read_body
from janus_moe.server.prompts import chat_prompt, check_logprobs, check_sampling, make_jobs
from janus_moe.server.requests import ChatBody
from janus_moe.server.responses import GenerationResponse, respond


async def chat_completions(request: Request, state: AppState) -> Response:
    arrival_s = state.monotonic()
    body = parse(await read_body(request, state.config.max_body_bytes), ChatBody)
    state.check_model(body.model)
    check_sampling(body, state.config, state.backend.spec.vocab_size)
    if body.token_limit == 0:
        raise RequestError("max_completion_tokens must be at least 1", "max_completion_tokens")
    check_logprobs("top_logprobs", body.top_logprobs, state.config)
    prompt = await state.text.run(lambda: chat_prompt(state, body))
    jobs = make_jobs(
        state.backend,
        body,
        [prompt],
        default_max_tokens=None,
        logprobs=_num_logprobs(body),
    )
    request_id = new_id("chatcmpl")
    head: dict[str, Any] = {
        "id": request_id,
        "object": "chat.completion",
        "created": int(state.wall_clock()),
        "model": state.model_name,
    }
    if body.return_token_ids:
        head["prompt_token_ids"] = list(prompt.ids)
    generation = GenerationResponse(
        state=state,
        request_id=request_id,
        arrival_s=arrival_s,
        head=head,
        stream_object="chat.completion.chunk",
        jobs=jobs,
        choices=[ChatChoice(job, body, state) for job in jobs],
    )
    return await respond(request, generation, body)


def _num_logprobs(body: ChatBody) -> int | None:
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", "top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


class ChatChoice:
    """One choice: its first streamed delta carries the role."""

    def __init__(self, job: EngineJob, body: ChatBody, state: AppState) -> None:
        self._index = job.index
        self._body = body
        self._tokenizer = state.backend.tokenizer
        self._role_shown = False
        self._content: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._token_ids: list[int] = []
        self._end: dict[str, Any] = {"finish_reason": None, "stop_reason": None}

    def deltas(self, chunk: TokenChunk) -> list[dict[str, Any]]:
        logprobs = self._new_logprobs(chunk)
        self._content.append(chunk.text)
        self._logprobs += logprobs
        self._token_ids += chunk.token_ids
        self._end = {"finish_reason": chunk.finish_reason, "stop_reason": chunk.stop_reason}
        deltas = []
        if not self._role_shown:
            self._role_shown = True
            deltas.append(self._delta({"role": "assistant", "content": ""}))
        returned_ids = chunk.token_ids if self._body.return_token_ids else ()
        if chunk.text or logprobs or returned_ids or chunk.finish_reason:
            delta = self._delta({"content": chunk.text} if chunk.text else {})
            delta["logprobs"] = self._shown(logprobs)
            deltas.append(delta | self._end)
            if self._body.return_token_ids:
                deltas[-1]["token_ids"] = list(returned_ids)
        return deltas

    def whole(self) -> dict[str, Any]:
        content = "".join(self._content)
        choice = {
            "index": self._index,
            "message": {"role": "assistant", "content": content},
            "logprobs": self._shown(self._logprobs),
            **self._end,
        }
        if self._body.return_token_ids:
            choice["token_ids"] = self._token_ids
        return choice

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _new_logprobs(self, chunk: TokenChunk) -> list[dict[str, Any]]:
        if not self._body.logprobs or not chunk.logprobs:
            return []
        return chat_logprobs(self._tokenizer, chunk.logprobs, self._body.top_logprobs or 0)

    def _shown(self, logprobs: list[dict[str, Any]]) -> dict[str, Any] | None:
        return {"content": logprobs, "refusal": None} if self._body.logprobs else None
