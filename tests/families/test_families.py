"""Claims: every family reads its config without a framework, and says what the engine lacks."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from janus_moe.errors import CheckpointError, JanusError
from janus_moe.families import FAMILIES, describe_model
from janus_moe.spec import GqaSpec, ModelSpec

COMMON: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "dtype": "bfloat16",
}
MLA = {
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "first_k_dense_replace": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "deepseek_v2": MLA,
    "deepseek_v3": MLA | {"n_group": 4, "topk_group": 2},
    "gpt_oss": {"num_local_experts": 8, "sliding_window": 16},
    "grok-1": {"num_experts": 8},
    "mixtral": {"num_local_experts": 8},
    "olmoe": {"num_experts": 8},
    "qwen2_moe": {
        "num_experts": 8,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
    },
    "qwen3_moe": {"num_experts": 8, "moe_intermediate_size": 32},
}


def config(family: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": family} | COMMON | CONFIGS[family] | changes


def read(family: str, **changes: Any) -> ModelSpec:
    return describe_model(config(family, **changes)).spec


def test_every_family_is_tried() -> None:
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("family", CONFIGS)
def test_sizes_are_read(family: str) -> None:
    spec = read(family)
    assert (spec.family, spec.num_layers, spec.hidden_size) == (family, 4, 64)
    assert (spec.moe.num_experts, spec.moe.router.top_k) == (8, 2)
    assert spec.num_dense_layers == (1 if family.startswith("deepseek") else 0)
    assert spec.weight_format.name == spec.expert_format.name == spec.dtype == "bfloat16"


@pytest.mark.parametrize("family", CONFIGS)
def test_what_has_names_for_its_tensors_can_be_served(family: str) -> None:
    described = describe_model(config(family))
    assert described.can_be_served == bool(FAMILIES[family].tensor_names)
    assert all(role in " ".join(described.obstacles) for role in FAMILIES[family].missing)


def test_layers_with_a_window_are_another_kind() -> None:
    spec = read("gpt_oss")
    kinds = [spec.attention_of(layer) for layer in range(spec.num_layers)]
    assert all(isinstance(kind, GqaSpec) for kind in kinds)
    assert [kind.visible(100) for kind in kinds] == [16, 100, 16, 100]
    assert spec.attention_counts == tuple((kind, 2) for kind in spec.attention)


def test_quantised_experts_are_a_format_apart_from_the_dtype() -> None:
    described = describe_model(config("gpt_oss", quantization_config={"quant_method": "mxfp4"}))
    spec = described.spec
    assert (spec.dtype, spec.weight_format.name, spec.expert_format.name) == (
        "bfloat16",
        "bfloat16",
        "mxfp4",
    )
    assert spec.expert_bytes == 3 * 64 * 96 * (0.5 + 1 / 32)
    assert any("quantised (mxfp4)" in obstacle for obstacle in described.obstacles)


def test_fp8_is_the_format_of_all_matrices() -> None:
    spec = read("deepseek_v3", quantization_config={"quant_method": "fp8"})
    assert spec.weight_format == spec.expert_format
    assert spec.expert_format.block == (128, 128)


@pytest.mark.parametrize(
    ("changes", "obstacle"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"partial_rotary_factor": 0.5}, "rotate 8 of 16 dimensions"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ],
)
def test_what_is_not_computed_is_described_all_the_same(
    changes: dict[str, Any], obstacle: str
) -> None:
    described = describe_model(config("qwen3_moe", **changes))
    assert obstacle in described.obstacles[0] and not described.can_be_served
    assert described.spec.num_layers == 4


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_hidden_layers": None}, "num_hidden_layers must be 1 or more, found None"),
        ({"vocab_size": True}, "vocab_size must be 1 or more, found True"),
        ({"rope_theta": "large"}, "rope_theta must be a number"),
        ({"rope_scaling": {"rope_type": "linear"}}, "config.json, rope_scaling has no factor"),
        ({"rope_scaling": [1]}, "rope_scaling must be an object"),
        ({"norm_topk_prob": 1}, "norm_topk_prob must be true or false"),
    ],
)
def test_contradictions_are_errors(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        read("qwen3_moe", **changes)


ODD_VALUES: tuple[Any, ...] = (
    *("x", "", -1, 0, 1, 7, 1.5, float("nan"), True, None, [], ["x"], [None], {}),
    *({"rope_type": [1]}, {"rope_theta": -1}, {"quant_method": [1]}),
    *({"rope_type": kind, "factor": 0} for kind in ("linear", "llama3", "yarn")),
)
OPTIONAL_KEYS = (
    *("rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor", "head_dim"),
    *("layer_types", "mlp_only_layers", "decoder_sparse_step", "sliding_window", "eos_token_id"),
    *("n_group", "topk_group", "n_shared_experts", "q_lora_rank", "routed_scaling_factor"),
    *("quantization_config", "torch_dtype", "rms_norm_eps", "attention_bias", "norm_topk_prob"),
)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.filterwarnings("error")
def test_odd_values_are_read_or_refused(family: str) -> None:
    for key in {*config(family), *OPTIONAL_KEYS} - {"model_type"}:
        for value in ODD_VALUES:
            with contextlib.suppress(JanusError):
                read(family, **{key: value})


def test_a_missing_key_is_named() -> None:
    raw = config("qwen3_moe")
    del raw["num_experts"]
    with pytest.raises(CheckpointError, match=r"config\.json has no num_experts"):
        describe_model(raw)


def test_older_and_newer_spellings_mean_the_same() -> None:
    older = read("qwen3_moe", rope_theta=1e6, rope_scaling={"type": "linear", "factor": 2})
    newer = read(
        "qwen3_moe", rope_parameters={"rope_type": "linear", "factor": 2, "rope_theta": 1e6}
    )
    assert older == newer
