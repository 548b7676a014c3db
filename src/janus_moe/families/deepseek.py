"""What DeepSeek-V2 and V3 share: latent attention, leading dense layers, shared experts."""

from __future__ import annotations

from typing import Any

from janus_moe.families.common import (
    RopeLayout,
    eos_ids,
    require,
    require_sizes,
    require_value,
    rope_spec,
    yarn_softmax_scale,
)
from janus_moe.spec import (
    WEIGHT_FORMATS,
    Dtype,
    LayerSpec,
    MlaSpec,
    ModelSpec,
    MoeSpec,
    RouterSpec,
)

LORA_NORM_EPS = 1e-6  # fixed in the architecture, whatever rms_norm_eps says


def mla_moe_spec(
    config: Any,
    dtype: Dtype,
    router: RouterSpec,
    rope_layout: RopeLayout,
) -> ModelSpec:
    """ModelSpec of a DeepSeek config with the given router."""
    _check(config, router)
    first_moe = config.first_k_dense_replace or 0
    layers = config.num_hidden_layers
    require(first_moe < layers, f"first_k_dense_replace={first_moe} leaves no layer with experts")
    return ModelSpec(
        family=config.model_type,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        max_position=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        tie_embeddings=config.tie_word_embeddings,
        attention=(_attention(config, rope_layout),),
        layers=tuple(
            LayerSpec(mlp="moe" if layer >= first_moe else "dense") for layer in range(layers)
        ),
        moe=MoeSpec(
            num_experts=config.n_routed_experts,
            intermediate_size=config.moe_intermediate_size,
            router=router,
            shared_intermediate_size=config.moe_intermediate_size * (config.n_shared_experts or 0),
        ),
        dense_intermediate_size=config.intermediate_size if first_moe else 0,
        dtype=dtype,
        weight_format=WEIGHT_FORMATS[dtype],
        expert_format=WEIGHT_FORMATS[dtype],
        eos_token_ids=eos_ids(config.eos_token_id),
    )


def _attention(config: Any, rope_layout: RopeLayout) -> MlaSpec:
    key_dim = config.qk_nope_head_dim + config.qk_rope_head_dim
    return MlaSpec(
        num_heads=config.num_attention_heads,
        q_lora_rank=config.q_lora_rank,
        kv_lora_rank=config.kv_lora_rank,
        nope_head_dim=config.qk_nope_head_dim,
        rope_head_dim=config.qk_rope_head_dim,
        value_head_dim=config.v_head_dim,
        scale=yarn_softmax_scale(config, key_dim**-0.5),
        bias=config.attention_bias,
        rope=rope_spec(config, config.qk_rope_head_dim, rope_layout),
        lora_norm_eps=LORA_NORM_EPS,
    )


def _check(config: Any, router: RouterSpec) -> None:
    require_sizes(
        config, "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
        "max_position_embeddings", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
        "v_head_dim", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size",
    )  # fmt: skip
    require_value(config, "hidden_act", ["silu"])
    require_value(config, "moe_layer_freq", [1])
    require_value(config, "mlp_bias", [False])
    experts, groups = config.n_routed_experts, router.num_groups
    require(experts % groups == 0, f"n_group={groups} does not divide n_routed_experts={experts}")
    require(
        1 <= router.top_groups <= groups,
        f"topk_group={router.top_groups} must be between 1 and n_group={groups}",
    )
    eligible = router.top_groups * experts // groups
    require(
        router.top_k <= eligible,
        f"num_experts_per_tok={router.top_k} exceeds the {eligible} experts of the "
        f"topk_group={router.top_groups} selected groups",
    )
