"""Request bodies: bounded reading, strict decoding, errors that name the field.

Fields are of four kinds: known (the request struct), harmless (ignored, by an explicit list),
replaced (the error says what is possible instead) and unknown (an error). None that changes what
the client gets is ignored silently.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from fastapi import Request

from janus_moe.errors import RequestError
from janus_moe.server.errors import ApiError, ClientDisconnected

BODY_TIMEOUT_S = 60.0

IGNORED = frozenset(
    (
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prediction",
        "parallel_tool_calls",
        "request_id",
    )
)
_NO_GRAMMARS = (
    "output cannot be constrained to a format yet; describe the format in the prompt, or use stop "
    "or logit_bias"
)
_NO_TOOLS = "tool calls are not supported yet; describe the functions in the messages"
# Fields that other servers knew once, and what is possible here instead.
REPLACED = {
    "guided_json": _NO_GRAMMARS,
    "guided_regex": _NO_GRAMMARS,
    "guided_choice": _NO_GRAMMARS,
    "guided_grammar": _NO_GRAMMARS,
    "guided_decoding_backend": _NO_GRAMMARS,
    "guided_whitespace_pattern": _NO_GRAMMARS,
    "functions": _NO_TOOLS,
    "function_call": _NO_TOOLS,
    "max_new_tokens": "use max_tokens",
}
# Fields of the API that are not implemented, with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "structured_outputs": ({},),
    "suffix": ("",),
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "early_stopping": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "return_tokens_as_token_ids": (False,),
    "modalities": (["text"],),
    "priority": (0,),
    "bad_words": ([],),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "allowed_token_ids": (),
    "prompt_embeds": (),
    "audio": (),
    "web_search_options": (),
    "reasoning_effort": (),
    "verbosity": (),
}

T = TypeVar("T")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body, of at most `max_bytes` and within a minute."""
    too_large = ApiError(
        413, f"the request body is larger than {max_bytes} bytes", code="body_too_large"
    )
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnected
                body += message.get("body", b"")
                if len(body) > max_bytes:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise ApiError(408, "the request body did not arrive in time") from None


def parse(body: bytes, kind: type[T]) -> T:
    """The body as a `kind` struct. Raises RequestError naming the offending field."""
    return convert(check_fields(decode_object(body), kind), kind)


def decode_object(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        message = f"the request body is not valid JSON: {_reason(error)}"
        raise ApiError(400, message, code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the request body must be a JSON object", code="invalid_json")
    return value


def _reason(error: Exception) -> str:
    """Returns what a decoder did not take, without the text itself."""
    match error:
        case UnicodeDecodeError():
            return "a text in it is not UTF-8"
        case RecursionError():
            return "it is nested too deeply"
    return str(error).removeprefix("JSON is malformed: ")


def check_fields(given: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The fields `kind` knows; null means not given, as clients send it for every default."""
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    kept = {}
    for name, value in given.items():
        if value is None or (name in IGNORED and name not in known):
            continue
        if name in known:
            kept[name] = value
        elif name in REPLACED:
            raise RequestError(f"{name} is not supported: {REPLACED[name]}", name)
        elif name not in UNSUPPORTED:
            raise ApiError(
                400,
                f"unknown field: {name[:100]}",
                param=name[:100],
                code="unknown_field",
            )
        elif not _asks_for_nothing(name, value):
            raise RequestError(f"{name} is not supported yet", name)
    return kept


def convert(fields: Mapping[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        complaint, _, path = str(error).partition(" - at `$")
        param = path.rstrip("`").lstrip(".") or None
        where = f"{param}: " if param else ""
        given = "" if ", got " in complaint else _given(fields, param)
        raise RequestError(f"{where}{complaint}{given}", param) from None
    except (OverflowError, RecursionError):
        raise RequestError("a number or a nesting in the request is too large") from None


def _asks_for_nothing(name: str, value: Any) -> bool:
    return any(type(value) is type(idle) and value == idle for idle in UNSUPPORTED[name]) or (
        name == "length_penalty" and value == 1
    )


def _given(fields: Mapping[str, Any], param: str | None) -> str:
    """What the client sent, where it is a number that is out of range."""
    value = fields.get(param or "")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f", got {value!r:.40}" if is_number else ""
