"""DeepSeek-V2 and V3: latent attention, leading dense layers, shared experts.

V2 routes by softmax, optionally within the best groups; V3 and R1 by sigmoid with a correction
bias and group scores. Multi-token-prediction layers follow the others in a V3 checkpoint; they are
not read.
"""

from __future__ import annotations

from janus_moe.families.config import Config
from janus_moe.families.description import Family, model_spec
from janus_moe.families.rope import RopeLayout, rope_spec, yarn_softmax_scale
from janus_moe.families.tensor_names import COMMON_NAMES, MLA_NAMES
from janus_moe.spec import LayerSpec, MlaSpec, ModelSpec, MoeSpec, RouterSpec

LORA_NORM_EPS = 1e-6  # fixed in the architecture, whatever rms_norm_eps says


def read_v2(config: Config) -> ModelSpec:
    """The description in a config of DeepSeek-V2 or V2-Lite."""
    config.only("topk_method", "greedy", "group_limited_greedy")
    config.only("scoring_func", "softmax")
    # The reference code normalises *instead of* scaling, transformers ignores the key: no
    # published V2 checkpoint sets it, so neither reading can be confirmed.
    config.only("norm_topk_prob", False)
    limited = config.get("topk_method") == "group_limited_greedy"
    router = RouterSpec(
        top_k=config.size("num_experts_per_tok"),
        scoring="softmax",
        normalize=False,
        scaling_factor=config.number("routed_scaling_factor", 1.0),
        num_groups=_groups(config, "n_group", 1) if limited else 1,
        top_groups=_groups(config, "topk_group", 1) if limited else 1,
        group_score="max",
        logits_dtype="float32",
    )
    return _read(config, router, "interleaved", dense_layers=0, shared_experts=2)


def read_v3(config: Config) -> ModelSpec:
    """The description in a config of DeepSeek-V3 or R1."""
    config.only("topk_method", "noaux_tc")
    config.only("scoring_func", "sigmoid")
    experts, groups = config.size("n_routed_experts"), _groups(config, "n_group", 8)
    config.require(
        experts >= 2 * groups,
        f"n_group={groups} leaves fewer than 2 of n_routed_experts={experts} experts per group, "
        "and a group is scored by its two best",
    )
    router = RouterSpec(
        top_k=config.size("num_experts_per_tok"),
        scoring="sigmoid",
        normalize=config.flag("norm_topk_prob", True),
        scaling_factor=config.number("routed_scaling_factor", 2.5),
        num_groups=groups,
        top_groups=_groups(config, "topk_group", 4),
        group_score="top2_sum",
        correction_bias=True,
        logits_dtype="float32",
    )
    layout: RopeLayout = "interleaved" if config.flag("rope_interleave", True) else "halves"
    return _read(config, router, layout, dense_layers=3, shared_experts=1)


def _read(
    config: Config, router: RouterSpec, layout: RopeLayout, dense_layers: int, shared_experts: int
) -> ModelSpec:
    """What both share.

    dense_layers, shared_experts: where the config does not say.
    """
    config.only("hidden_act", "silu")
    config.only("moe_layer_freq", 1)
    config.only("mlp_bias", False)
    _check_groups(config, router)
    layers = config.size("num_hidden_layers")
    dense = config.count("first_k_dense_replace", dense_layers)
    config.require(dense < layers, f"first_k_dense_replace={dense} leaves no layer with experts")
    width = config.size("moe_intermediate_size")
    return model_spec(
        config,
        attention=[_attention(config, layout)],
        layers=[LayerSpec(mlp="dense" if layer < dense else "moe") for layer in range(layers)],
        moe=MoeSpec(
            num_experts=config.size("n_routed_experts"),
            intermediate_size=width,
            router=router,
            shared_intermediate_size=width * config.count("n_shared_experts", shared_experts),
        ),
        dense_intermediate_size=config.size("intermediate_size") if dense else 0,
    )


def _attention(config: Config, layout: RopeLayout) -> MlaSpec:
    nope, rope = config.size("qk_nope_head_dim"), config.size("qk_rope_head_dim")
    direct = "q_lora_rank" in config and config.get("q_lora_rank") is None
    return MlaSpec(
        num_heads=config.size("num_attention_heads"),
        q_lora_rank=None if direct else config.size("q_lora_rank", default=1536),
        kv_lora_rank=config.size("kv_lora_rank"),
        nope_head_dim=nope,
        rope_head_dim=rope,
        value_head_dim=config.size("v_head_dim"),
        scale=yarn_softmax_scale(config, (nope + rope) ** -0.5),
        bias=config.flag("attention_bias", False),
        lora_norm_eps=LORA_NORM_EPS,
        rope=rope_spec(config, rope, layout),
    )


def _groups(config: Config, key: str, absent: int) -> int:
    """A number of groups; null means one."""
    return config.count(key, absent) or 1


def _check_groups(config: Config, router: RouterSpec) -> None:
    experts, groups = config.size("n_routed_experts"), router.num_groups
    config.require(
        experts % groups == 0, f"n_group={groups} does not divide n_routed_experts={experts}"
    )
    config.require(
        1 <= router.top_groups <= groups,
        f"topk_group={router.top_groups} must be between 1 and n_group={groups}",
    )
    eligible = router.top_groups * experts // groups
    config.require(
        router.top_k <= eligible,
        f"num_experts_per_tok={router.top_k} exceeds the {eligible} experts of the "
        f"topk_group={router.top_groups} selected groups",
    )


_NAMES = {**COMMON_NAMES, **MLA_NAMES}
DEEPSEEK_V2 = Family("deepseek_v2", read_v2, _NAMES)
DEEPSEEK_V3 = Family("deepseek_v3", read_v3, _NAMES)
