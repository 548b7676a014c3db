"""DeepSeek-V3 and R1: sigmoid routing with a correction bias and group scores.

Multi-token-prediction layers follow the decoder layers in the checkpoint; they are not read.
"""

from __future__ import annotations

from typing import Any

from janus_moe.families.common import COMMON_NAMES, MLA_NAMES, RopeLayout, require, require_value
from janus_moe.families.deepseek import mla_moe_spec
from janus_moe.spec import Dtype, ModelSpec, RouterSpec

MODEL_TYPE = "deepseek_v3"
TENSOR_NAMES = {**COMMON_NAMES, **MLA_NAMES}


def spec_from_config(config: Any, dtype: Dtype) -> ModelSpec:
    """ModelSpec of a DeepseekV3Config."""
    require_value(config, "topk_method", ["noaux_tc"])
    require_value(config, "scoring_func", ["sigmoid"])
    groups = config.n_group or 1
    require(
        config.n_routed_experts >= 2 * groups,
        f"n_group={groups} leaves fewer than 2 of n_routed_experts={config.n_routed_experts} "
        "experts per group, and a group is scored by its two best",
    )
    router = RouterSpec(
        top_k=config.num_experts_per_tok or 0,
        scoring="sigmoid",
        normalize=bool(config.norm_topk_prob),
        scaling_factor=config.routed_scaling_factor,
        num_groups=groups,
        top_groups=config.topk_group or 1,
        group_score="top2_sum",
        correction_bias=True,
        logits_dtype="float32",
    )
    layout: RopeLayout = "interleaved" if config.rope_interleave else "halves"
    return mla_moe_spec(config, dtype, router, layout)
