"""Claim: whatever is wrong with a checkpoint or a shape is said in one line before anything is
started, with what to do about it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.checkpoints import make_checkpoint, write_tokenizer
from tests.e2e.conftest import Model

from janus_moe.cli import main


@pytest.fixture
def folder(qwen3: Model, tmp_path: Path) -> Path:
    """A good checkpoint to break."""
    return Path(shutil.copytree(qwen3.folder, tmp_path / "model"))


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a start that is refused."""
    assert main(["serve", "--port", "0", *arguments]) == 1
    captured = capsys.readouterr()
    line = next(line for line in captured.err.splitlines() if line.startswith("janus serve: "))
    assert "Traceback" not in captured.err
    return line


def test_truncated_shard(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in refuse(capsys, str(folder))


def test_missing_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_checkpoint(tmp_path / "sharded", "qwen3_moe", max_shard_size="60KB")
    write_tokenizer(folder)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refuse(capsys, str(folder))


def test_wrong_dtype(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    weights[name] = weights[name].to(torch.int8)
    save_file(weights, folder / "model.safetensors")
    message = refuse(capsys, str(folder))
    assert name in message
    assert "I8" in message


def test_unsupported_architecture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    message = refuse(capsys, str(folder))
    assert "llama" in message
    assert "qwen3_moe" in message


def test_no_tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "--tokenizer" in refuse(capsys, str(folder))


def test_more_instances_than_experts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refuse(capsys, str(folder), "--expert-instances", "6")
    assert "6" in message
    assert "use at most 5" in message


def test_too_many_redundant_experts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refuse(capsys, str(folder), "--expert-instances", "2", "--redundant-experts", "6")
    assert "from 0 to 5" in message


def test_context_beyond_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "256" in refuse(capsys, str(folder), "--max-model-len", "4K")


def test_cache_too_small(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refuse(
        capsys, str(folder), "--kv-cache-memory-bytes", "64K", "--max-model-len", "256"
    )
    assert "--max-model-len" in message


def test_nothing_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in refuse(capsys, "./no-such-folder")


def test_recording_where_it_cannot_be_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the model is looked at; and no other file is ever replaced."""
    for target, complaint in (
        (tmp_path / "none" / "routing.jrt", "No such file or directory"),
        (tmp_path, "is not a file"),
        (folder / "config.json", "exists and is not a routing trace"),
    ):
        message = refuse(capsys, "./no-such-model", "--record-routing", str(target))
        assert complaint in message and str(target) in message
    assert json.loads((folder / "config.json").read_text())


def test_unknown_setting_in_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "janus.yaml"
    settings.write_text("expert-instances: 2\nexpert-instnaces: 3\n")
    said = "expert-instnaces; did you mean expert-instances?"
    assert said in refuse(capsys, "--config", str(settings))


def test_taken_port(qwen3: Model, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = refuse(capsys, str(qwen3.folder), "--port", str(port), "--max-model-len", "64")
    assert str(port) in message
