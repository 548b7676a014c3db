"""Qwen3-MoE: grouped-query attention with normalised heads, softmax routing, no shared expert.

Qwen2-MoE, which the engine does not run, has a shared expert and biases instead of norms.
"""

from __future__ import annotations

from janus_moe.families.config import Config
from janus_moe.families.description import Family, gqa_spec, model_spec
from janus_moe.families.tensor_names import COMMON_NAMES, GQA_NAMES
from janus_moe.spec import LayerSpec, ModelSpec, MoeSpec, RouterSpec


def read_qwen3(config: Config) -> ModelSpec:
    """The description in a config of Qwen3-MoE."""
    return _read(config, qk_norm=True, bias=False, shared_intermediate_size=0)


def read_qwen2(config: Config) -> ModelSpec:
    """The description in a config of Qwen2-MoE."""
    shared = config.count("shared_expert_intermediate_size")
    return _read(config, qk_norm=False, bias=True, shared_intermediate_size=shared)


def _read(config: Config, *, qk_norm: bool, bias: bool, shared_intermediate_size: int) -> ModelSpec:
    config.only("hidden_act", "silu")
    config.serve_only_if(
        not config.flag("use_sliding_window", False) or config.get("sliding_window") is None,
        "use_sliding_window=true is not supported; set it to false if the model runs without",
    )
    layers = [_layer(config, layer) for layer in range(config.size("num_hidden_layers"))]
    all_moe = all(layer.mlp == "moe" for layer in layers)
    return model_spec(
        config,
        attention=[gqa_spec(config, qk_norm=qk_norm, bias=bias)],
        layers=layers,
        moe=MoeSpec(
            num_experts=config.size("num_experts", "num_local_experts"),
            intermediate_size=config.size("moe_intermediate_size"),
            router=RouterSpec(
                top_k=config.size("num_experts_per_tok"),
                scoring="softmax",
                normalize=config.flag("norm_topk_prob", False),
            ),
            shared_intermediate_size=shared_intermediate_size,
        ),
        dense_intermediate_size=0 if all_moe else config.size("intermediate_size"),
    )


def _layer(config: Config, layer: int) -> LayerSpec:
    sparse = (layer + 1) % config.size("decoder_sparse_step", default=1) == 0
    is_moe = sparse and layer not in config.items("mlp_only_layers")
    return LayerSpec(mlp="moe" if is_moe else "dense")


QWEN3_MOE = Family("qwen3_moe", read_qwen3, {**COMMON_NAMES, **GQA_NAMES})
QWEN2_MOE = Family("qwen2_moe", read_qwen2, missing=("the gate of its shared expert",))
