"""Claims: experts read in pieces are the experts; a file that changed is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import pytest
import torch
from tests.checkpoints import make_checkpoint

from janus_moe.errors import CheckpointError
from janus_moe.model.checkpoint import Checkpoint
from janus_moe.model.config import read_spec
from janus_moe.model.expert_block import ExpertModel
from janus_moe.model.piecewise import Piece, expert_pieces


@pytest.mark.parametrize("max_bytes", [1, 1000, 2**20])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pieces_fill_a_spare_slot_with_the_expert(
    tmp_path: Path, dtype: Literal["float32", "bfloat16"], max_bytes: int
) -> None:
    folder = make_checkpoint(tmp_path / "model", "deepseek_v3", seed=2)
    spec, checkpoint = read_spec(folder, dtype), Checkpoint.open(folder)
    whole = ExpertModel.load(spec, checkpoint, [[5]] * len(spec.moe_layer_ids), "cpu")
    part = ExpertModel.load(spec, checkpoint, [[1]] * len(spec.moe_layer_ids), "cpu", spare_slots=1)
    layer = spec.moe_layer_ids[-1]
    kept = part.layers[layer].gate_up[0].clone()
    for piece in expert_pieces(part, checkpoint, layer, 5, 1, max_bytes):
        assert piece.num_bytes <= max_bytes or piece.target.shape[0] == 1
        piece.load()
    assert torch.equal(part.layers[layer].gate_up[1], whole.layers[layer].gate_up[0])
    assert torch.equal(part.layers[layer].down[1], whole.layers[layer].down[0])
    assert torch.equal(part.layers[layer].gate_up[0], kept)


def pieces(folder: Path) -> list[Piece]:
    spec, checkpoint = read_spec(folder, "float32"), Checkpoint.open(folder)
    model = ExpertModel.load(spec, checkpoint, [[0]] * len(spec.moe_layer_ids), "cpu")
    return list(expert_pieces(model, checkpoint, spec.moe_layer_ids[0], 1, 0, 1000))


def test_a_changed_file_is_refused_without_its_path(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "qwen3_moe", seed=2)
    first, *_ = pieces(folder)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content)
    os.utime(weights, ns=(1, 1))
    with pytest.raises(CheckpointError, match=r"^model\.safetensors was changed since the start"):
        first.load()
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"^model\.safetensors cannot be read: No such file"):
        first.load()


def test_the_same_file_is_read_again_once_it_is_back(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "qwen3_moe", seed=2)
    other = make_checkpoint(tmp_path / "other", "qwen3_moe", seed=3)
    first, *_ = pieces(folder)
    first.files.remember()
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    first.load()
    loaded = first.target.clone()
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"^model\.safetensors cannot be read: No such file"):
        first.load()
    for wrong in ((other / weights.name).read_bytes(), content[:-1], content + b" "):
        weights.write_bytes(wrong)
        with pytest.raises(CheckpointError, match="was changed since the start; put the same file"):
            first.load()
    weights.write_bytes(content)
    first.target.zero_()
    first.load()
    assert torch.equal(first.target, loaded)
    os.utime(weights, ns=(1, 1))
    first.load()


def test_a_file_that_changed_before_it_was_remembered_stays_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "qwen3_moe", seed=2)
    first, *_ = pieces(folder)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    first.files.remember()
    with pytest.raises(CheckpointError, match="was changed since the start"):
        first.load()
