"""Facts about devices and models: complete, sourced, and equal to what is published."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from janus_moe.errors import CheckpointError, ConfigError
from janus_moe.planner.latency import device_names, device_profile, facts, find_model, model_names
from janus_moe.planner.latency.catalog import KnownModel
from janus_moe.planner.latency.precision import with_precision
from janus_moe.planner.latency.sizes import (
    attention_side_weights,
    kv_bytes_per_sequence,
    kv_bytes_per_token,
    routed_weights,
    router_weights,
)
from janus_moe.spec import WEIGHT_FORMATS, ModelSpec

BILLION = 1e9


def total_weights(model: ModelSpec) -> float:
    """All weights, with one copy of each expert."""
    return float(attention_side_weights(model)) + router_weights(model) + routed_weights(model)


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
        find_model("gpt-9")


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
    assert total_weights(find_model(name)) / BILLION == pytest.approx(billions, rel=6e-3)


def test_share_of_the_experts_is_the_papers_for_qwen3() -> None:
    """423 of 438 GB in bfloat16, arXiv 2512.13525 section 1, where a GB is 2**30 bytes."""
    model = find_model("qwen3-235b-a22b")
    assert 2 * routed_weights(model) / 2**30 == pytest.approx(423, abs=0.5)
    assert 2 * total_weights(model) / 2**30 == pytest.approx(438, abs=0.5)


@pytest.mark.parametrize(
    ("name", "paper"), [("deepseek-v2", 0.892), ("deepseek-v3", 0.937), ("grok-1", 0.917)]
)
def test_share_of_the_experts_is_above_the_papers_elsewhere(name: str, paper: float) -> None:
    """The paper seems to divide GiB of experts by GB of model there; at worst that is 7 %."""
    model = find_model(name)
    share = routed_weights(model) / total_weights(model)
    assert share / 2**30 * 1e9 < paper < share < paper * 1.08


def test_latent_attention_keeps_576_numbers_a_token() -> None:
    model = find_model("deepseek-ai/DeepSeek-R1")
    assert kv_bytes_per_token(model, "bfloat16") == 61 * 1152
    assert kv_bytes_per_sequence(model, 100, "bfloat16") == 61 * 100 * 1152


def test_a_window_bounds_the_cache_of_its_layers() -> None:
    model = find_model("openai/gpt-oss-20b")
    row = 2 * 8 * 64 * 2
    assert kv_bytes_per_sequence(model, 1000, "bfloat16") == 12 * row * (1000 + 128)


def test_a_folder_is_read_as_the_shipped_config_is(tmp_path: Path) -> None:
    known = facts.load("models", "deepseek-v2", KnownModel)
    (tmp_path / "config.json").write_text(json.dumps(known.config))
    found = find_model(str(tmp_path))
    assert found.name == tmp_path.name
    assert msgspec.structs.replace(found, name=known.title) == find_model("deepseek-v2")


def test_the_bundled_model_has_facts() -> None:
    assert total_weights(find_model("bundled")) > 0


def test_a_config_that_lacks_a_key_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mixtral", "hidden_size": 8}')
    with pytest.raises(CheckpointError, match=r"config.json has no num_attention_heads"):
        find_model(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "weights", "experts"),
    [
        ("gpt-oss-120b", "bfloat16", "mxfp4"),
        ("deepseek-v3", "fp8", "fp8"),
        ("qwen3-30b-a3b", "bfloat16", "bfloat16"),
    ],
)
def test_formats_are_the_published_ones(name: str, weights: str, experts: str) -> None:
    model = find_model(name)
    assert (model.weight_format.name, model.expert_format.name) == (weights, experts)


def test_other_formats_leave_hidden_states_as_they_are() -> None:
    model = with_precision(find_model("qwen3-30b-a3b"), "fp8", None)
    assert model.weight_format == model.expert_format == WEIGHT_FORMATS["fp8"]
    assert model.dtype == "bfloat16"
    assert with_precision(model, "float32", "mxfp4").dtype == "float32"


def test_all_models_load() -> None:
    assert len(model_names()) == 11
    titles = {find_model(name).name for name in model_names()}
    assert len(titles) == 11 and "DeepSeek-V2" in titles
