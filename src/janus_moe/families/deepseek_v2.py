"""DeepSeek-V2 and V2-Lite: softmax routing, optionally limited to the best groups."""

from __future__ import annotations

from typing import Any

from janus_moe.families.common import COMMON_NAMES, MLA_NAMES, require_value
from janus_moe.families.deepseek import mla_moe_spec
from janus_moe.spec import Dtype, ModelSpec, RouterSpec

MODEL_TYPE = "deepseek_v2"
TENSOR_NAMES = {**COMMON_NAMES, **MLA_NAMES}


def spec_from_config(config: Any, dtype: Dtype) -> ModelSpec:
    """ModelSpec of a DeepseekV2Config."""
    require_value(config, "topk_method", ["greedy", "group_limited_greedy"])
    require_value(config, "scoring_func", ["softmax"])
    # The reference code normalises *instead of* scaling, transformers ignores the key: no
    # published V2 checkpoint sets it, so neither reading can be confirmed.
    require_value(config, "norm_topk_prob", [False])
    limited = config.topk_method == "group_limited_greedy"
    router = RouterSpec(
        top_k=config.num_experts_per_tok or 0,
        scoring="softmax",
        normalize=False,
        scaling_factor=config.routed_scaling_factor,
        num_groups=config.n_group or 1 if limited else 1,
        top_groups=config.topk_group or 1 if limited else 1,
        group_score="max",
        logits_dtype="float32",
    )
    return mla_moe_spec(config, dtype, router, "interleaved")
