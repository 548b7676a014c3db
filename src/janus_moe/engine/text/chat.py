"""Chat messages to a prompt, through the template of the checkpoint or of the operator.

Templates run in transformers' sandbox and never come from a request. Rendering may take long: the
caller bounds its time and keeps it off the event loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_moe.engine.text.tokenizer import Tokenizer
from janus_moe.errors import ConfigError, RequestError

_ROLES = ("system", "developer", "user", "assistant")
_PASSED = frozenset({"role", "content", "name", "reasoning_content", "reasoning"})
_IGNORED = frozenset({"annotations", "id", "refusal"})
# What apply_chat_template and the template's own context already mean something by.
_RESERVED = frozenset(
    (
        "messages",
        "conversation",
        "chat_template",
        "tokenize",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "return_tensors",
        "return_dict",
        "padding",
        "truncation",
        "max_length",
        "tokenizer_kwargs",
        "return_assistant_tokens_mask",
    )
)


def load_chat_template(path: str) -> str:
    """The operator's template file, checked for syntax. Raises ConfigError."""
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        template = Path(path).read_text(encoding="utf-8")
        _compile_jinja_template(template)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--chat-template {path} cannot be read: {error}") from error
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"--chat-template {path} is not a valid template: line {error.lineno}: {error.message}"
        ) from error
    return template


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    template: str | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The prompt for these messages. `template` overrides the checkpoint's; `variables` are shown
    to the template by name. Raises RequestError for whatever the messages are to blame for."""
    chosen = template or tokenizer.chat_template
    if chosen is None:
        raise RequestError(
            "this model has no chat template: use /v1/completions, or start the server with "
            "--chat-template FILE",
            "messages",
        )
    conversation = plain_messages(messages)
    _check_variables(variables or {})
    try:
        rendered = tokenizer.hf.apply_chat_template(
            conversation,
            chat_template=chosen,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **(variables or {}),
        )
    # A template can raise anything; none of it may reach the client as it is.
    except Exception as error:
        raise RequestError(_complaint(error), "messages") from error
    return str(rendered)


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages with a known role and content as one string. Raises RequestError."""
    if not messages:
        raise RequestError("messages must not be empty", "messages")
    return [_plain_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _plain_message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    given = {name: value for name, value in message.items() if value is not None}
    role = given.get("role")
    if role in ("tool", "function") or given.get("tool_calls") or given.get("function_call"):
        raise RequestError(f"{where}: tool calls are not supported yet", where)
    if role not in _ROLES:
        raise RequestError(f"{where}.role must be one of {', '.join(_ROLES)}", f"{where}.role")
    for name in given.keys() - _PASSED - _IGNORED - {"tool_calls", "function_call"}:
        raise RequestError(f"{where}: unknown field {name[:100]!r}", f"{where}.{name[:100]}")
    plain = {
        name: given[name] for name in ("name", "reasoning_content", "reasoning") & given.keys()
    }
    for name, value in plain.items():
        if not isinstance(value, str):
            raise RequestError(f"{where}.{name} must be a string", f"{where}.{name}")
    # Templates of open models know the role by its older name.
    plain["role"] = "system" if role == "developer" else role
    plain["content"] = _plain_content(given.get("content"), role, f"{where}.content")
    return plain


def _plain_content(content: Any, role: str, where: str) -> str:
    if isinstance(content, str):
        return content
    if content is None and role == "assistant":
        return ""
    if isinstance(content, list) and content:
        return "\n".join(_text_part(part, f"{where}[{i}]") for i, part in enumerate(content))
    raise RequestError(f"{where} must be a string or a list of text parts", where)


def _text_part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise RequestError(f"{where} must be a text part", where)
    kind = part.get("type")
    if kind != "text":
        raise RequestError(f"{where}: only text parts are supported, not {str(kind)[:50]!r}", where)
    if not isinstance(part.get("text"), str):
        raise RequestError(f"{where}.text must be a string", where)
    text: str = part["text"]
    return text


def _check_variables(variables: Mapping[str, Any]) -> None:
    for name, value in variables.items():
        where = f"chat_template_kwargs.{name[:100]}"
        if name in _RESERVED or not name.isidentifier() or name.startswith("_"):
            raise RequestError(f"{where} cannot be set by a request", where)
        if not isinstance(value, str | int | float | bool):
            raise RequestError(f"{where} must be a string, number or boolean", where)


def _complaint(error: Exception) -> str:
    """A sentence for the client; only text the template's author wrote for it is passed on."""
    from jinja2 import TemplateError

    if type(error) is TemplateError and error.message:
        return f"the chat template refused these messages: {error.message[:500]}"
    return f"the chat template cannot render these messages ({type(error).__name__})"
