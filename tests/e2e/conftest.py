"""One random checkpoint per family for the whole session, and its oracle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints import make_checkpoint, write_tokenizer
from tests.e2e.oracle import Oracle

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3_moe", {"tie_word_embeddings": False}),
    "qwen3-tied": (
        "qwen3_moe",
        {"tie_word_embeddings": True, "num_experts": 7, "norm_topk_prob": False},
    ),
    "deepseek-v2": (
        "deepseek_v2",
        {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
    ),
    "deepseek-v3": ("deepseek_v3", {}),
}


@dataclass(frozen=True)
class Model:
    """folder: a checkpoint with tokenizer. oracle: the same, undivided."""

    folder: Path
    oracle: Oracle


@pytest.fixture(scope="session", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return _make(request.param, tmp_path_factory)


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return _make("qwen3", tmp_path_factory)


def _make(name: str, factory: pytest.TempPathFactory) -> Model:
    family, overrides = FAMILIES[name]
    folder = make_checkpoint(factory.mktemp(name) / "model", family, seed=7, **overrides)
    write_tokenizer(folder)
    return Model(folder, Oracle(folder))
