"""Claim: a model name leads to a folder, or to an error that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from janus_moe.errors import CheckpointError
from janus_moe.model.source import resolve_model

COMMIT = "0123456789012345678901234567890123456789"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache without a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_local_folder(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere", "a/b/c", "nowhere"])
def test_absent_folder(name: str) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve_model(name)


def test_cached_model_is_found_offline(cache: Path) -> None:
    repository = cache / "models--org--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    assert resolve_model("org/name") == snapshot


def test_absent_model_offline_says_what_to_do(cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"hf download org/name.*local folder"):
        resolve_model("org/name")


def test_impossible_hub_id(cache: Path) -> None:
    with pytest.raises(CheckpointError, match="org/na me"):
        resolve_model("org/na me")
