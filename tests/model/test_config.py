"""Claim: config.json becomes the right spec, or an error that says what is not supported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.checkpoints import FAMILY_DEFAULTS
from tests.families.test_families import config

from janus_moe.errors import CheckpointError
from janus_moe.model.config import read_spec
from janus_moe.spec import GqaSpec, MlaSpec, ModelSpec


def write_config(folder: Path, family: str, **overrides: Any) -> Path:
    config = {"model_type": family} | FAMILY_DEFAULTS.get(family, {}) | overrides
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refuse(folder: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        read_spec(folder)


@pytest.mark.parametrize("family", FAMILY_DEFAULTS)
def test_spec_survives_a_message(tmp_path: Path, family: str) -> None:
    spec = read_spec(write_config(tmp_path, family))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=ModelSpec) == spec
    assert spec.eos_token_ids == (256,)


def test_qwen3_30b_a3b(tmp_path: Path) -> None:
    """The published values of Qwen3-30B-A3B."""
    spec = read_spec(write_config(
        tmp_path, "qwen3_moe", hidden_size=2048, head_dim=128, num_attention_heads=32,
        num_key_value_heads=4, num_hidden_layers=48, num_experts=128, num_experts_per_tok=8,
        moe_intermediate_size=768, rope_theta=1000000.0, torch_dtype="bfloat16",
    ))  # fmt: skip
    (attention,) = spec.attention
    assert isinstance(attention, GqaSpec)
    assert (attention.cache_row, attention.qk_norm) == (1024, True)
    assert spec.moe_layer_ids == tuple(range(48))
    assert (spec.dense_intermediate_size, spec.moe.shared_intermediate_size) == (0, 0)
    assert spec.dtype == "bfloat16"
    assert spec.expert_bytes == 3 * 2048 * 768 * 2
    assert attention.rope.inv_freq[1] == pytest.approx(1e6 ** (-2 / 128))


def test_deepseek_v2_lite(tmp_path: Path) -> None:
    """The published values of DeepSeek-V2-Lite, in the older spelling of its config."""
    spec = read_spec(write_config(
        tmp_path, "deepseek_v2", hidden_size=2048, num_attention_heads=16, num_key_value_heads=16,
        q_lora_rank=None, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
        v_head_dim=128, n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6,
        moe_intermediate_size=1408, num_hidden_layers=27, scoring_func="softmax",
        topk_method="greedy", moe_layer_freq=1, max_position_embeddings=163840,
        auto_map={"AutoConfig": "configuration_deepseek.DeepseekV2Config"},
        rope_theta=10000, rope_scaling={
            "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
            "beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707,
        },
    ))  # fmt: skip
    (attention,) = spec.attention
    assert isinstance(attention, MlaSpec)
    assert attention.cache_row == 576
    assert attention.scale == pytest.approx(192**-0.5 * 1.2608**2, rel=1e-4)
    assert attention.rope.attention_factor == pytest.approx(1.0)
    assert spec.moe.shared_intermediate_size == 2816
    assert spec.moe_layer_ids == tuple(range(1, 27))


@pytest.mark.parametrize(
    ("stored", "asked", "device", "chosen"),
    [
        ("float32", "auto", "cpu", "float32"),
        ("bfloat16", "auto", "cpu", "bfloat16"),
        ("float16", "auto", "cpu", "float32"),
        ("float16", "auto", "cuda", "bfloat16"),
        ("bfloat16", "float32", "cpu", "float32"),
        ("float32", "bfloat16", "cpu", "bfloat16"),
    ],
)
def test_dtype(tmp_path: Path, stored: str, asked: Any, device: str, chosen: str) -> None:
    folder = write_config(tmp_path, "qwen3_moe", dtype=stored)
    assert read_spec(folder, asked, device).dtype == chosen


@pytest.mark.parametrize(
    ("content", "expected"),
    [({"eos_token_id": [7, 8]}, (7, 8)), ({"eos_token_id": 9}, (9,)), ({}, (256,))],
)
def test_eos_from_generation_config(
    tmp_path: Path, content: dict[str, object], expected: tuple[int, ...]
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert read_spec(write_config(tmp_path, "qwen3_moe")).eos_token_ids == expected


def test_unsupported_architecture_lists_the_supported(tmp_path: Path) -> None:
    refuse(write_config(tmp_path, "llama"), "'llama'.*deepseek_v2, deepseek_v3, qwen3_moe")


def test_a_family_for_planning_is_refused_with_what_the_engine_lacks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config("gpt_oss")))
    refuse(tmp_path, "for gpt_oss the engine lacks attention sinks, sliding windows, biases")


def test_checkpoint_code_is_never_run(tmp_path: Path) -> None:
    write_config(tmp_path, "mystery", auto_map={"AutoConfig": "evil.Config"})
    (tmp_path / "evil.py").write_text("raise SystemExit")
    refuse(tmp_path, "auto_map")


@pytest.mark.parametrize(
    ("family", "overrides", "match"),
    [
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window"),
        ("qwen3_moe", {"mlp_only_layers": [0, 1, 2]}, "no layer is a mixture"),
        ("qwen3_moe", {"num_experts_per_tok": 6}, "num_experts_per_tok=6 exceeds"),
        ("qwen3_moe", {"num_key_value_heads": 3}, "no multiple"),
        ("qwen3_moe", {"num_experts": 0}, "num_experts must be 1 or more"),
        ("qwen3_moe", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("qwen3_moe", {"hidden_size": "wide"}, r"config\.json"),
        ("qwen3_moe", {"quantization_config": {"quant_method": "fp8"}}, r"quantised \(fp8\)"),
        ("qwen3_moe", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob=True"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method='noaux_tc'"),
        ("deepseek_v2", {"moe_layer_freq": 2}, "moe_layer_freq=2"),
        ("deepseek_v2", {"mlp_bias": True}, "mlp_bias=True"),
        ("deepseek_v2", {"first_k_dense_replace": 3}, "leaves no layer with experts"),
        ("deepseek_v2", {"num_experts_per_tok": None}, "num_experts_per_tok must be 1 or more"),
        ("deepseek_v3", {"n_group": 3}, "n_group=3 does not divide"),
        ("deepseek_v3", {"n_group": 8}, "fewer than 2"),
        ("deepseek_v3", {"topk_group": 1}, "exceeds the 2 experts"),
        ("deepseek_v3", {"topk_group": 5}, "between 1 and n_group=4"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func='softmax'"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    tmp_path: Path, family: str, overrides: dict[str, object], match: str
) -> None:
    refuse(write_config(tmp_path, family, **overrides), match)


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_damaged_config(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    refuse(tmp_path, r"config\.json")


def test_missing_config(tmp_path: Path) -> None:
    refuse(tmp_path, "does not exist")
