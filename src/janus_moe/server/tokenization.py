"""/tokenize, /detokenize, /tokenizer_info: the served model's tokenizer for remote clients."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import Response

from janus_moe.errors import RequestError
from janus_moe.server.app_state import AppState
from janus_moe.server.parsing import parse, read_body
from janus_moe.server.prompts import chat_prompt
from janus_moe.server.requests import DetokenizeBody, TokenizeBody
from janus_moe.server.responses import json_response


async def tokenize(request: Request, state: AppState) -> Response:
    state.require_loaded()
    body = parse(await read_body(request, state.config.max_body_bytes), TokenizeBody)
    state.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("give either prompt or messages", "prompt")
    ids = await state.text.run(lambda: _tokens(state, body))
    tokenizer = state.backend.tokenizer
    strings = [tokenizer.token_text(i) for i in ids] if body.return_token_strs else None
    return json_response(
        {
            "count": len(ids),
            "max_model_len": state.backend.max_model_len,
            "tokens": ids,
            "token_strs": strings,
        }
    )


async def detokenize(request: Request, state: AppState) -> Response:
    state.require_loaded()
    body = parse(await read_body(request, state.config.max_body_bytes), DetokenizeBody)
    state.check_model(body.model)
    vocab_size = state.backend.spec.vocab_size
    if body.tokens and max(body.tokens) >= vocab_size:
        raise RequestError(
            f"token id {max(body.tokens)} is outside this model's vocabulary of {vocab_size}",
            "tokens",
        )
    tokenizer = state.backend.tokenizer
    text = await state.text.run(lambda: tokenizer.decode(body.tokens, skip_special_tokens=False))
    return json_response({"prompt": text})


async def tokenizer_info(request: Request, state: AppState) -> Response:
    state.require_loaded()
    info = state.backend.tokenizer.info()
    if state.chat_template is not None:
        info["chat_template"] = state.chat_template
    return json_response(info)


def _tokens(state: AppState, body: TokenizeBody) -> list[int]:
    if body.prompt is None:
        return list(chat_prompt(state, body).ids)
    special = body.add_special_tokens is not False
    return state.backend.tokenizer.encode(body.prompt, add_special_tokens=special)
