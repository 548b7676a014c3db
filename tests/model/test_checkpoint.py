"""Claim: a damaged or unfitting checkpoint is refused before loading, naming file and tensor."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints import make_checkpoint
from torch import Tensor

from janus_moe.errors import CheckpointError
from janus_moe.model.attention_block import AttentionModel
from janus_moe.model.checkpoint import Checkpoint, validate
from janus_moe.model.config import read_spec
from janus_moe.model.expert_block import ExpertModel
from janus_moe.model.memory import attention_bytes, expert_pool_bytes
from janus_moe.model.tensors import all_tensors

SHARDED = "60KB"
UP = "model.layers.2.mlp.experts.4.up_proj.weight"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint in one file and the same in shards."""
    root = tmp_path_factory.mktemp("models")
    return {
        "single": make_checkpoint(root / "single", "qwen3_moe"),
        "sharded": make_checkpoint(root / "sharded", "qwen3_moe", max_shard_size=SHARDED),
    }


@pytest.fixture
def single(originals: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals["single"], tmp_path / "single"))


@pytest.fixture
def sharded(originals: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals["sharded"], tmp_path / "sharded"))


def check(folder: Path) -> None:
    validate(Checkpoint.open(folder), read_spec(folder))


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Rewrites model.safetensors with edited tensors."""
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    edit(tensors)
    save_file(tensors, file)


def shard_of(folder: Path, tensor: str) -> Path:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / str(index["weight_map"][tensor])


def test_shards_hold_what_one_file_holds(originals: dict[str, Path]) -> None:
    single, sharded = Checkpoint.open(originals["single"]), Checkpoint.open(originals["sharded"])
    assert len({entry.file for entry in sharded.entries.values()}) > 2
    for info in all_tensors(read_spec(originals["sharded"])):
        assert torch.equal(single.view(info.name), sharded.view(info.name))


def test_progress_reports_every_byte_of_each_instance(originals: dict[str, Path]) -> None:
    checkpoint, spec = Checkpoint.open(originals["sharded"]), read_spec(originals["sharded"])
    slots = [[3, 0, 3]] * len(spec.moe_layer_ids)
    attention: list[int] = []
    expert: list[int] = []
    AttentionModel.load(spec, checkpoint, "cpu", attention.append)
    ExpertModel.load(spec, checkpoint, slots, "cpu", expert.append)
    assert sum(attention) == attention_bytes(spec)
    assert sum(expert) == expert_pool_bytes(spec, slots)


def test_missing_shard_is_named(sharded: Path) -> None:
    shard = shard_of(sharded, UP)
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name} is missing"):
        check(sharded)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_shard_is_named(sharded: Path, keep: int) -> None:
    shard = shard_of(sharded, UP)
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=f"{shard.name} is truncated"):
        check(sharded)


def test_unreadable_header_is_named(single: Path) -> None:
    (single / "model.safetensors").write_bytes(struct.pack("<Q", 10) + b"{not json}")
    with pytest.raises(CheckpointError, match=r"model\.safetensors has an unreadable header"):
        check(single)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]},
        {"dtype": "F32", "shape": "wide", "data_offsets": [0, 8]},
        {"dtype": "F32"},
    ],
)
def test_contradictory_header_entry_is_named(single: Path, entry: object) -> None:
    header = json.dumps({"lm_head.weight": entry}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(64)
    (single / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors .*lm_head\.weight"):
        check(single)


def test_missing_tensors_are_one_error(single: Path) -> None:
    change(single, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".4." in name])
    with pytest.raises(CheckpointError, match=r"lacks model\.layers.* and 8 more tensors"):
        check(single)


def test_index_naming_a_tensor_its_shard_lacks(sharded: Path) -> None:
    shard = shard_of(sharded, UP)
    save_file({"other": torch.zeros(1)}, shard)
    with pytest.raises(CheckpointError, match=f"{shard.name} lacks model"):
        check(sharded)


def test_index_pointing_outside_its_folder(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {UP: "../single/model.safetensors"}}))
    with pytest.raises(CheckpointError, match="points outside its folder"):
        check(sharded)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": [1]}'])
def test_unreadable_index(sharded: Path, content: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="not a readable index"):
        check(sharded)


def test_unexpected_shape_is_named_with_both_shapes(single: Path) -> None:
    change(single, lambda tensors: tensors.update({UP: torch.zeros(7, 40)}))
    with pytest.raises(CheckpointError, match=r"experts\.4\.up_proj.*\[7, 40\].*\[20, 40\]"):
        check(single)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float64])
def test_unsupported_dtype_is_named(single: Path, dtype: torch.dtype) -> None:
    change(single, lambda tensors: tensors.update({UP: torch.zeros(20, 40).to(dtype)}))
    with pytest.raises(CheckpointError, match=r"experts\.4\.up_proj.*convert the checkpoint"):
        check(single)


def test_float16_is_read(single: Path) -> None:
    change(single, lambda tensors: tensors.update({UP: tensors[UP].half()}))
    check(single)
    checkpoint = Checkpoint.open(single)
    assert checkpoint.read(UP, torch.float32, torch.device("cpu")).dtype == torch.float32


def test_worker_without_validation_still_names_the_tensor(single: Path) -> None:
    change(single, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"lacks model\.norm\.weight"):
        AttentionModel.load(read_spec(single), Checkpoint.open(single), "cpu")


def test_no_weights_at_all(single: Path) -> None:
    (single / "model.safetensors").rename(single / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="converted to safetensors"):
        check(single)


def test_tied_checkpoint_may_repeat_its_embedding(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tied", "qwen3_moe", tie_word_embeddings=True)
    embedding = "model.embed_tokens.weight"
    change(folder, lambda tensors: tensors.update({"lm_head.weight": tensors[embedding].clone()}))
    spec, checkpoint = read_spec(folder), Checkpoint.open(folder)
    model = AttentionModel.load(spec, checkpoint, "cpu")
    assert model.lm_head.data_ptr() == model.embedding.data_ptr()
    change(folder, lambda tensors: tensors["lm_head.weight"].add_(1))
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        AttentionModel.load(spec, Checkpoint.open(folder), "cpu")


def test_multi_token_prediction_layers_are_ignored(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "mtp", "deepseek_v3", num_nextn_predict_layers=1)
    change(folder, lambda tensors: tensors.update({"model.layers.3.eh_proj.weight": torch.ones(2)}))
    check(folder)
