"""Qwen3 MoE: grouped-query attention with normalised heads, softmax routing, no shared expert."""

from __future__ import annotations

from typing import Any

from janus_moe.families.common import (
    COMMON_NAMES,
    GQA_NAMES,
    eos_ids,
    require,
    require_sizes,
    require_value,
    rope_spec,
)
from janus_moe.spec import (
    WEIGHT_FORMATS,
    Dtype,
    GqaSpec,
    LayerSpec,
    ModelSpec,
    MoeSpec,
    RouterSpec,
)

MODEL_TYPE = "qwen3_moe"
TENSOR_NAMES = {**COMMON_NAMES, **GQA_NAMES}


def spec_from_config(config: Any, dtype: Dtype) -> ModelSpec:
    """ModelSpec of a Qwen3MoeConfig."""
    require_sizes(
        config, "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "vocab_size", "max_position_embeddings", "num_experts", "num_experts_per_tok",
        "moe_intermediate_size", "decoder_sparse_step",
    )  # fmt: skip
    require_value(config, "hidden_act", ["silu"])
    require(
        not config.use_sliding_window or config.sliding_window is None,
        "use_sliding_window=true is not supported; set it to false if the model runs without",
    )
    require(
        config.num_experts_per_tok <= config.num_experts,
        f"num_experts_per_tok={config.num_experts_per_tok} exceeds num_experts="
        f"{config.num_experts}",
    )
    moe_layers = tuple(_is_moe(config, layer) for layer in range(config.num_hidden_layers))
    require(any(moe_layers), "no layer is a mixture of experts")
    return ModelSpec(
        family=MODEL_TYPE,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        max_position=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        tie_embeddings=config.tie_word_embeddings,
        attention=(_attention(config),),
        layers=tuple(LayerSpec(mlp="moe" if is_moe else "dense") for is_moe in moe_layers),
        moe=MoeSpec(
            num_experts=config.num_experts,
            intermediate_size=config.moe_intermediate_size,
            router=RouterSpec(
                top_k=config.num_experts_per_tok,
                scoring="softmax",
                normalize=config.norm_topk_prob,
            ),
        ),
        dense_intermediate_size=0 if all(moe_layers) else config.intermediate_size,
        dtype=dtype,
        weight_format=WEIGHT_FORMATS[dtype],
        expert_format=WEIGHT_FORMATS[dtype],
        eos_token_ids=eos_ids(config.eos_token_id),
    )


def _is_moe(config: Any, layer: int) -> bool:
    sparse = (layer + 1) % config.decoder_sparse_step == 0
    return sparse and layer not in (config.mlp_only_layers or ())


def _attention(config: Any) -> GqaSpec:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    require(
        heads % kv_heads == 0,
        f"num_attention_heads={heads} is no multiple of num_key_value_heads={kv_heads}",
    )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return GqaSpec(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        qk_norm=True,
        bias=config.attention_bias,
        rope=rope_spec(config, head_dim, "halves"),
    )
