"""Facts about devices and models: complete, sourced, and equal to what is published."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from janus_moe.errors import CheckpointError, ConfigError
from janus_moe.planner.latency import device_names, device_profile, model_facts, model_names
from janus_moe.planner.latency.checkpoint import facts_of_config

BILLION = 1e9


@pytest.mark.parametrize("name", device_names())
def test_every_number_of_a_device_has_a_source(name: str) -> None:
    device = device_profile(name)
    told = {
        field.name
        for field in msgspec.structs.fields(device)
        if field.name not in ("name", "title", "sources")
        and getattr(device, field.name) is not None
    }
    assert told == set(device.sources)


def test_an_unknown_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no device 'h900'.*h100_sxm.*l40s"):
        device_profile("h900")


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"model 'gpt-9'.*deepseek-v2.*config.json"):
        model_facts("gpt-9")


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("deepseek-v2", 235.7),
        ("deepseek-v3", 671.0),
        ("qwen3-235b-a22b", 235.1),
        ("qwen3-30b-a3b", 30.5),
        ("mixtral-8x7b", 46.7),
        ("olmoe-1b-7b", 6.92),
        ("gpt-oss-120b", 116.8),
        ("gpt-oss-20b", 20.9),
        ("grok-1", 314.0),
    ],
)
def test_weights_add_up_to_the_published_number_of_parameters(name: str, billions: float) -> None:
    assert model_facts(name).total_weights / BILLION == pytest.approx(billions, rel=6e-3)


def test_share_of_the_experts_is_the_papers_for_qwen3() -> None:
    """423 of 438 GB in bfloat16, arXiv 2512.13525 section 1, where a GB is 2**30 bytes."""
    model = model_facts("qwen3-235b-a22b")
    assert 2 * model.routed_weights / 2**30 == pytest.approx(423, abs=0.5)
    assert 2 * model.total_weights / 2**30 == pytest.approx(438, abs=0.5)


@pytest.mark.parametrize(
    ("name", "paper"), [("deepseek-v2", 0.892), ("deepseek-v3", 0.937), ("grok-1", 0.917)]
)
def test_share_of_the_experts_is_above_the_papers_elsewhere(name: str, paper: float) -> None:
    """The paper seems to divide GiB of experts by GB of model there; at worst that is 7 %."""
    model = model_facts(name)
    share = model.routed_weights / model.total_weights
    assert share / 2**30 * 1e9 < paper < share < paper * 1.08


def test_latent_attention_keeps_576_numbers_a_token() -> None:
    model = model_facts("deepseek-ai/DeepSeek-R1")
    assert model.kv_bytes_per_token_layer() == 1152
    assert model.kv_bytes_per_sequence(100) == 61 * 100 * 1152


def test_a_window_bounds_the_cache_of_its_layers() -> None:
    model = model_facts("openai/gpt-oss-20b")
    row = 2 * 8 * 64 * 2
    assert model.kv_bytes_per_sequence(1000) == 12 * row * (1000 + 128)


def test_facts_of_a_folder_equal_the_shipped_ones(tmp_path: Path) -> None:
    config = {
        "model_type": "deepseek_v2", "num_hidden_layers": 60, "hidden_size": 5120,
        "num_attention_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": 160, "num_experts_per_tok": 6, "moe_intermediate_size": 1536,
        "n_shared_experts": 2, "first_k_dense_replace": 1, "intermediate_size": 12288,
        "vocab_size": 102400, "torch_dtype": "bfloat16", "max_position_embeddings": 163840,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    shipped = model_facts("deepseek-v2")
    found = model_facts(str(tmp_path))
    same = msgspec.structs.replace(
        found,
        name=shipped.name,
        title=shipped.title,
        source=shipped.source,
        aliases=shipped.aliases,
    )
    assert same == shipped


def test_the_bundled_model_has_facts() -> None:
    assert model_facts("bundled").total_weights > 0


def test_a_config_without_experts_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2, "hidden_size": 8}')
    with pytest.raises(CheckpointError, match=r"config.json has no num_attention_heads"):
        model_facts(str(tmp_path))


def test_quantised_experts_are_recognised() -> None:
    config = {
        "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 100,
        "num_local_experts": 8, "experts_per_token": 2, "intermediate_size": 64,
        "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16,
        "quantization_config": {"quant_method": "mxfp4"},
    }  # fmt: skip
    model = facts_of_config(config, "toy", "here")
    assert (model.weight_dtype, model.expert_dtype) == ("bfloat16", "mxfp4")
    assert model.expert_bytes() == 3 * 64 * 64 * (0.5 + 1 / 32)


def test_all_models_load() -> None:
    assert len(model_names()) == 11
    assert all(model_facts(name).name == name for name in model_names())
