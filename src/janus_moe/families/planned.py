"""Families that the planner knows and the engine does not run: GPT-OSS, Mixtral, OLMoE, Grok.

All have grouped-query attention, experts in every layer and no shared expert.
"""

from __future__ import annotations

import msgspec

from janus_moe.families.config import Config
from janus_moe.families.description import Family, gqa_spec, model_spec
from janus_moe.spec import GqaSpec, LayerSpec, ModelSpec, MoeSpec, RouterSpec


def read_gpt_oss(config: Config) -> ModelSpec:
    """The description in a config of GPT-OSS, whose layers see windows and everything in turns."""
    layers = config.size("num_hidden_layers")
    turns = ["sliding_attention", "full_attention"]
    names = config.items("layer_types", [turns[layer % 2] for layer in range(layers)])
    config.require(len(names) == layers, f"layer_types has {len(names)} of {layers} layers")
    whole = gqa_spec(config, qk_norm=False, bias=True, theta=150000.0)
    windowed = msgspec.structs.replace(whole, window=config.size("sliding_window", default=128))
    return _read(
        config,
        kinds=(whole, windowed),
        layers=[LayerSpec(attention=int(name == "sliding_attention")) for name in names],
        top_k=config.size("num_experts_per_tok", "experts_per_token"),
    )


def read_mixtral(config: Config) -> ModelSpec:
    """The description in a config of Mixtral."""
    return _read(config, kinds=(gqa_spec(config, qk_norm=False, theta=1e6),))


def read_olmoe(config: Config) -> ModelSpec:
    """The description in a config of OLMoE."""
    return _read(config, kinds=(gqa_spec(config, qk_norm=True),))


def read_grok(config: Config) -> ModelSpec:
    """The description in a config of Grok-1."""
    return _read(config, kinds=(gqa_spec(config, qk_norm=False),))


def _read(
    config: Config,
    kinds: tuple[GqaSpec, ...],
    layers: list[LayerSpec] | None = None,
    top_k: int | None = None,
) -> ModelSpec:
    """What they share.

    layers: of each layer; None means that all are alike.
    top_k: experts of a token; None means under the usual key.
    """
    moe = MoeSpec(
        num_experts=config.size("num_experts", "num_local_experts"),
        intermediate_size=config.size("intermediate_size"),
        router=RouterSpec(
            top_k=top_k or config.size("num_experts_per_tok"),
            scoring="softmax",
            normalize=config.flag("norm_topk_prob", True),
        ),
    )
    alike = [LayerSpec()] * config.size("num_hidden_layers")
    return model_spec(config, kinds, layers or alike, moe)


GPT_OSS = Family(
    "gpt_oss",
    read_gpt_oss,
    missing=("attention sinks", "sliding windows", "biases and the clamped SwiGLU of its experts"),
)
MIXTRAL = Family("mixtral", read_mixtral, missing=("the names of its tensors",))
OLMOE = Family("olmoe", read_olmoe, missing=("norms over all heads together",))
GROK = Family("grok-1", read_grok, missing=("capped scores", "norms after its blocks", "GELU"))
