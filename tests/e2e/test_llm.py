"""Claims about completing prompts without a server: the Python API and `janus generate`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.e2e.conftest import Model

import janus_moe
from janus_moe.cli import main
from janus_moe.errors import ConfigError, RequestError
from janus_moe.llm import Prompt

SETTINGS: dict[str, Any] = {"expert_instances": 2, "max_model_len": 128}


@pytest.fixture(scope="module")
def engine(qwen3: Model) -> Iterator[janus_moe.LLM]:
    with janus_moe.LLM(model=str(qwen3.folder), **SETTINGS) as running:
        yield running


def test_prompts_complete_in_their_order(engine: janus_moe.LLM, qwen3: Model) -> None:
    prompts: list[Prompt] = ["hello", [1, 2, 3], "a longer prompt with more tokens"]
    completions = engine.generate(prompts, max_tokens=20, temperature=0, ignore_eos=True)
    assert [c.prompt for c in completions] == prompts
    for completion in completions:
        assert completion.finish_reason == "length"
        for position, token in enumerate(completion.token_ids):
            ids = [*completion.prompt_ids, *completion.token_ids[:position]]
            assert token == int(qwen3.oracle.logits(ids)[-1].argmax())


def test_stop_string_ends_a_completion(engine: janus_moe.LLM) -> None:
    (free,) = engine.generate(["hello"], max_tokens=30, temperature=0, ignore_eos=True)
    stop = free.text[3:6]
    (stopped,) = engine.generate(
        ["hello"], stop=[stop], max_tokens=30, temperature=0, ignore_eos=True
    )
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.finish_reason == "stop"


def test_bad_prompts_and_settings_are_refused(engine: janus_moe.LLM) -> None:
    with pytest.raises(RequestError, match="empty"):
        engine.generate([[]], max_tokens=1)
    with pytest.raises(RequestError, match="context is 128"):
        engine.generate(["x"], max_tokens=500)
    with pytest.raises(RequestError, match="list"):
        engine.generate("just text")
    with pytest.raises(ConfigError, match="max_tokens"):
        engine.generate(["x"], max_tokens="many")
    assert engine.generate(["x"], max_tokens=1)[0].token_ids, "the engine lives on"


def test_generate_prints_completions(qwen3: Model, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--prompt", "hello", "--model", str(qwen3.folder), "--max-tokens", "5", "--json"]
    assert main(["generate", *arguments, "--max-model-len", "64"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    answer = json.loads(line)
    assert answer["prompt"] == "hello"
    assert 1 <= len(answer["token_ids"]) <= 5
