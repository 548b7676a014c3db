from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from janus_moe.engine.text.chat import load_chat_template, render_chat
from janus_moe.engine.text.tokenizer import Tokenizer
from janus_moe.errors import ConfigError, RequestError

USER = {"role": "user", "content": "hi"}


def test_renders_the_checkpoints_template(tokenizer: Tokenizer) -> None:
    rendered = render_chat(tokenizer, [{"role": "developer", "content": "be brief"}, USER])
    assert rendered == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_text_parts_are_joined(tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert "user\na\nb<" in render_chat(tokenizer, [{"role": "user", "content": parts}])


def test_messages_as_clients_send_back_the_answer(tokenizer: Tokenizer) -> None:
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [],
        "audio": None,
    }
    assert "assistant\n<" in render_chat(tokenizer, [USER, answer, USER])


def test_operators_template_wins(tokenizer: Tokenizer) -> None:
    assert render_chat(tokenizer, [USER], template="{{ messages|length }}") == "1"


def test_variables_reach_the_template(tokenizer: Tokenizer) -> None:
    assert render_chat(tokenizer, [USER], variables={"greeting": "Hey"}).endswith("Hey")


def test_continues_the_final_message(tokenizer: Tokenizer) -> None:
    messages = [USER, {"role": "assistant", "content": "Sure, "}]
    rendered = render_chat(
        tokenizer, messages, add_generation_prompt=False, continue_final_message=True
    )
    assert rendered.endswith("assistant\nSure, ")


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "empty"),
        ([{"role": "user"}], "content"),
        ([{"role": "user", "content": []}], "content"),
        ([{"role": "user", "content": 3}], "content"),
        ([{"role": "king", "content": "x"}], "role"),
        ([{"content": "x"}], "role"),
        ([{"role": ["user"], "content": "x"}], "role"),
        ([{"role": "tool", "content": "x"}], "not supported yet"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{}]}], "not supported yet"),
        ([USER | {"colour": "red"}], "colour"),
        ([USER | {"name": 3}], "name"),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "http://x"}}],
                }
            ],
            "image_url",
        ),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "input_audio"),
        ([{"role": "user", "content": [{"type": "text"}]}], "text"),
        ([{"role": "user", "content": [7]}], "text part"),
        ([{"role": "user", "content": "forbidden"}], "no forbidden words"),
    ],
)
def test_bad_messages_are_the_requests_fault(
    tokenizer: Tokenizer, messages: list[dict[str, Any]], says: str
) -> None:
    with pytest.raises(RequestError, match=says):
        render_chat(tokenizer, messages)


@pytest.mark.parametrize(
    "variables",
    [{"tokenize": True}, {"chat_template": "x"}, {"__class__": "x"}, {"tools": "x"}, {"a": [1]}],
)
def test_variables_cannot_steer_the_renderer(
    tokenizer: Tokenizer, variables: dict[str, Any]
) -> None:
    with pytest.raises(RequestError, match="chat_template_kwargs"):
        render_chat(tokenizer, [USER], variables=variables)


@pytest.mark.parametrize(
    "template",
    ["{{ messages[0].x.y }}", "{{ ''.__class__.__mro__ }}", "{{ 1 / 0 }}", "{{ messages + 1 }}"],
)
def test_template_errors_do_not_leak(tokenizer: Tokenizer, template: str) -> None:
    with pytest.raises(RequestError, match="cannot render these messages") as caught:
        render_chat(tokenizer, [USER], template=template)
    assert "object" not in str(caught.value)


def test_template_file(tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_text("{{ messages }}")
    assert load_chat_template(str(path)) == "{{ messages }}"
    path.write_text("{% if %}")
    with pytest.raises(ConfigError, match="line 1"):
        load_chat_template(str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_chat_template(str(tmp_path / "missing"))
