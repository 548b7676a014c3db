"""Claims about the blocks themselves: idle steps, partial instances, rotation layouts."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import msgspec
import pytest
import torch
from tests.checkpoints import make_checkpoint, write_tokenizer
from tests.model.runner import Runner

from janus_moe.errors import CheckpointError
from janus_moe.kernels.rotate_and_cache import rotate_
from janus_moe.model.attention_kinds import ATTENTION_CLASSES
from janus_moe.model.checkpoint import Checkpoint
from janus_moe.model.config import read_spec
from janus_moe.model.expert_block import ExpertModel
from janus_moe.model.memory import expert_pool_bytes
from janus_moe.model.rotation import pair_order, rotation_table
from janus_moe.spec import WEIGHT_FORMATS, AttentionSpec, RopeSpec

FAMILIES = ["qwen3_moe", "deepseek_v2", "deepseek_v3"]


@pytest.fixture(scope="module", params=FAMILIES)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    folder = make_checkpoint(tmp_path_factory.mktemp("model"), request.param)
    write_tokenizer(folder)
    return Runner(folder)


def test_no_tokens_are_a_valid_batch(runner: Runner) -> None:
    nothing = torch.empty(0, runner.spec.hidden_size)
    layer = runner.spec.moe_layer_ids[0]
    with torch.inference_mode():
        ids, weights = runner.experts[0].route(layer, nothing)
        assert ids.shape == (0, runner.spec.moe.router.top_k)
        assert runner.experts[0].compute(layer, nothing, ids, weights).shape == nothing.shape
        shared = runner.model.shared(layer, nothing)
        assert shared is None or shared.shape == nothing.shape


def test_tokens_of_one_step_do_not_see_each_other(runner: Runner) -> None:
    together = runner.step({"a": [1, 2, 3], "b": [4, 5]})
    alone = runner.step({"c": [4, 5]})
    torch.testing.assert_close(together["b"], alone["c"], rtol=1e-5, atol=1e-5)


def test_instance_without_slots_answers_with_zeros(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "qwen3_moe")
    spec = read_spec(folder)
    instance = ExpertModel.load(
        spec, Checkpoint.open(folder), [[] for _ in spec.moe_layer_ids], "cpu"
    )
    hidden = torch.randn(4, spec.hidden_size)
    with torch.inference_mode():
        ids, weights = instance.route(0, hidden)
        assert not instance.compute(0, hidden, torch.full_like(ids, -1), weights).any()


def test_every_kind_of_attention_has_a_class() -> None:
    assert set(ATTENTION_CLASSES) == set(get_args(AttentionSpec))


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_different_kinds_are_computed_as_their_own(tmp_path: Path, family: str) -> None:
    """Two kinds that are equal change nothing; one that differs changes what comes after it."""
    folder = make_checkpoint(tmp_path / "model", family)
    plain = read_spec(folder)
    (kind,) = plain.attention
    layers = tuple(
        msgspec.structs.replace(layer, attention=number % 2)
        for number, layer in enumerate(plain.layers)
    )
    faster = msgspec.structs.replace(
        kind, rope=msgspec.structs.replace(kind.rope, inv_freq=(0.7,) * len(kind.rope.inv_freq))
    )
    logits = [
        Runner(folder, spec=spec).step({"a": [1, 2, 3], "b": [4]})["a"]
        for spec in (
            plain,
            msgspec.structs.replace(plain, attention=(kind, kind), layers=layers),
            msgspec.structs.replace(plain, attention=(kind, faster), layers=layers),
        )
    ]
    assert torch.equal(logits[0], logits[1])
    torch.testing.assert_close(logits[0][0], logits[2][0])  # position 0 is not rotated
    assert (logits[0][2] - logits[2][2]).abs().max() > 1e-2


def test_a_format_that_is_not_computed_is_counted_and_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "qwen3_moe")
    plain = read_spec(folder)
    spec = msgspec.structs.replace(plain, expert_format=WEIGHT_FORMATS["fp8"])
    slots = [[0, 1] for _ in spec.moe_layer_ids]
    saved = expert_pool_bytes(plain, slots) - expert_pool_bytes(spec, slots)
    assert saved == 2 * spec.num_moe_layers * (plain.expert_bytes - spec.expert_bytes) > 0
    with pytest.raises(CheckpointError, match="weights in fp8 cannot be computed with"):
        ExpertModel.load(spec, Checkpoint.open(folder), slots, "cpu")


@pytest.mark.parametrize("num_columns", [20, 23], ids=["aligned", "misaligned"])
def test_rotation_is_by_the_angle_of_each_pair(num_columns: int) -> None:
    """Rows stored as halves, reordered and rotated, score as by the textbook formula."""
    rope = RopeSpec(inv_freq=(1.0, 0.1, 0.01, 0.001), attention_factor=1.5, layout="halves")
    stored = torch.randn(3, 8)
    positions = torch.tensor([0, 5, 17])
    rotation = rotation_table(rope, 20, torch.device("cpu"))[positions].unsqueeze(1)
    wide = torch.randn(3, num_columns)
    wide[:, 3:11] = stored[:, pair_order(rope)]
    rotated = rotate_(wide[:, 3:11].view(3, 1, 8), rotation).view(3, 8)

    angles = positions[:, None] * torch.tensor(rope.inv_freq)
    cos, sin = angles.cos().repeat(1, 2) * 1.5, angles.sin().repeat(1, 2) * 1.5
    half_turned = torch.cat((-stored[:, 4:], stored[:, :4]), dim=-1)
    expected = (stored * cos + half_turned * sin)[:, pair_order(rope)]
    torch.testing.assert_close(rotated, expected)


def test_byte_tokenizer_round_trip(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = make_checkpoint(tmp_path / "model", "qwen3_moe")
    write_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "Grüße,\n\t世界 🌍"
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "user: hi\nassistant: "
