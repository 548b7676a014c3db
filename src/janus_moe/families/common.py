"""What the families share: checks, rotary frequencies, tensor names. Knows no architecture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from janus_moe.errors import CheckpointError
from janus_moe.spec import RopeSpec

RopeLayout = Literal["halves", "interleaved"]

STATIC_ROPE_TYPES = ("default", "linear", "llama3", "proportional", "yarn")

_LAYER = "model.layers.{layer}."

COMMON_NAMES: Mapping[str, str] = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "lm_head": "lm_head.weight",
    "input_norm": _LAYER + "input_layernorm.weight",
    "mlp_norm": _LAYER + "post_attention_layernorm.weight",
    "o": _LAYER + "self_attn.o_proj.weight",
    "o_bias": _LAYER + "self_attn.o_proj.bias",
    "dense_gate": _LAYER + "mlp.gate_proj.weight",
    "dense_up": _LAYER + "mlp.up_proj.weight",
    "dense_down": _LAYER + "mlp.down_proj.weight",
    "router": _LAYER + "mlp.gate.weight",
    "router_bias": _LAYER + "mlp.gate.e_score_correction_bias",
    "shared_gate": _LAYER + "mlp.shared_experts.gate_proj.weight",
    "shared_up": _LAYER + "mlp.shared_experts.up_proj.weight",
    "shared_down": _LAYER + "mlp.shared_experts.down_proj.weight",
    "expert_gate": _LAYER + "mlp.experts.{expert}.gate_proj.weight",
    "expert_up": _LAYER + "mlp.experts.{expert}.up_proj.weight",
    "expert_down": _LAYER + "mlp.experts.{expert}.down_proj.weight",
}

GQA_NAMES: Mapping[str, str] = {
    "q": _LAYER + "self_attn.q_proj.weight",
    "k": _LAYER + "self_attn.k_proj.weight",
    "v": _LAYER + "self_attn.v_proj.weight",
    "q_bias": _LAYER + "self_attn.q_proj.bias",
    "k_bias": _LAYER + "self_attn.k_proj.bias",
    "v_bias": _LAYER + "self_attn.v_proj.bias",
    "q_norm": _LAYER + "self_attn.q_norm.weight",
    "k_norm": _LAYER + "self_attn.k_norm.weight",
}

MLA_NAMES: Mapping[str, str] = {
    "q": _LAYER + "self_attn.q_proj.weight",
    "q_a": _LAYER + "self_attn.q_a_proj.weight",
    "q_a_bias": _LAYER + "self_attn.q_a_proj.bias",
    "q_a_norm": _LAYER + "self_attn.q_a_layernorm.weight",
    "q_b": _LAYER + "self_attn.q_b_proj.weight",
    "kv_a": _LAYER + "self_attn.kv_a_proj_with_mqa.weight",
    "kv_a_bias": _LAYER + "self_attn.kv_a_proj_with_mqa.bias",
    "kv_a_norm": _LAYER + "self_attn.kv_a_layernorm.weight",
    "kv_b": _LAYER + "self_attn.kv_b_proj.weight",
}


def require(condition: bool, problem: str) -> None:
    """Raises CheckpointError(problem) unless the condition holds."""
    if not condition:
        raise CheckpointError(f"config.json: {problem}")


def require_value(config: Any, key: str, supported: Iterable[object]) -> None:
    """A key that is absent, or one of the values this implementation computes."""
    choices = tuple(supported)
    value = getattr(config, key, None)
    require(
        value is None or value in choices,
        f"{key}={value!r} is not supported, only {' or '.join(map(repr, choices))}",
    )


def require_sizes(config: Any, *keys: str) -> None:
    """Keys that must be whole numbers of at least 1."""
    for key in keys:
        value = getattr(config, key, None)
        require(isinstance(value, int) and value >= 1, f"{key} must be 1 or more, found {value!r}")


def eos_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """End-of-sequence ids as configs write them: none, one or a list."""
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def rope_spec(config: Any, rotary_dim: int, layout: RopeLayout) -> RopeSpec:
    """Static rotary frequencies, by transformers' own formulas.

    rotary_dim: dimensions of a head that rotate.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = config.rope_parameters
    kind = parameters.get("rope_type", "default")
    require(
        kind in STATIC_ROPE_TYPES,
        f"rope type {kind!r} is not supported; its frequencies change with the sequence length. "
        f"Supported are {', '.join(STATIC_ROPE_TYPES)}",
    )
    require(rotary_dim % 2 == 0, f"the rotary dimension must be even, found {rotary_dim}")
    if kind == "default":
        base = parameters["rope_theta"]
        inv_freq, factor = _default_frequencies(base, rotary_dim), 1.0
    else:
        tensor, factor = ROPE_INIT_FUNCTIONS[kind](config)
        inv_freq = tuple(tensor.tolist())
    require(
        2 * len(inv_freq) == rotary_dim,
        f"rope_parameters rotate {2 * len(inv_freq)} of {rotary_dim} dimensions; partial rotation "
        "is not supported",
    )
    return RopeSpec(inv_freq=inv_freq, attention_factor=float(factor), layout=layout)


def _default_frequencies(base: float, rotary_dim: int) -> tuple[float, ...]:
    """base ** (-2i / rotary_dim) in float32, the precision models were trained with."""
    import torch

    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float) / rotary_dim
    return tuple((1.0 / (base**exponents)).tolist())


def yarn_softmax_scale(config: Any, scale: float) -> float:
    """The softmax scale with YaRN's mscale, where the config asks for it (DeepSeek)."""
    parameters = config.rope_parameters
    all_dim = parameters.get("mscale_all_dim", 0)
    if parameters.get("rope_type", "default") == "default" or not all_dim:
        return scale
    factor = parameters["factor"]
    mscale = 1.0 if factor <= 1 else 0.1 * all_dim * math.log(factor) + 1.0
    return float(scale * mscale * mscale)
