"""What the families share: a family as a value, and the keys that every config has.

This module knows no architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from janus_moe.families.config import Config
from janus_moe.families.rope import DEFAULT_THETA, rope_spec
from janus_moe.spec import (
    WEIGHT_FORMATS,
    AttentionSpec,
    Dtype,
    FormatName,
    GqaSpec,
    LayerSpec,
    ModelSpec,
    MoeSpec,
)

CONFIG_DTYPES: Mapping[str, Dtype] = {
    "float32": "float32", "float16": "bfloat16", "bfloat16": "bfloat16",
}  # fmt: skip
"""As configs write it -> the dtype of as many bits."""

QUANTISED: Mapping[str, tuple[FormatName | None, FormatName]] = {
    "fp8": ("fp8", "fp8"), "mxfp4": (None, "mxfp4"),
}  # fmt: skip
"""Method -> (format of the matrices beside the experts, format of the experts); None means the
dtype of the checkpoint."""


@dataclass(frozen=True)
class Family:
    """One architecture.

    model_type: what config.json calls it.
    read: its description from a config; raises CheckpointError where that contradicts itself.
    tensor_names: role -> template with {layer} and {expert}; empty means that nothing loads it.
    missing: what the engine does not compute of any model of the family; empty means nothing.
    """

    model_type: str
    read: Callable[[Config], ModelSpec]
    tensor_names: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def model_spec(
    config: Config,
    attention: Sequence[AttentionSpec],
    layers: Sequence[LayerSpec],
    moe: MoeSpec,
    dense_intermediate_size: int = 0,
) -> ModelSpec:
    """A description whose other values stand under the usual keys."""
    method = config.part("quantization_config").get("quant_method")
    config.serve_only_if(
        not config.get("quantization_config"),
        f"the checkpoint is quantised ({method or 'unknown method'}), which is not supported; use "
        "or convert to a bfloat16, float16 or float32 version",
    )
    dtype = CONFIG_DTYPES.get(stored_dtype(config) or "", "bfloat16")
    beside, experts = QUANTISED.get(str(method), (None, dtype))
    config.require(any(layer.mlp == "moe" for layer in layers), "no layer is a mixture of experts")
    config.require(
        moe.router.top_k <= moe.num_experts,
        f"num_experts_per_tok={moe.router.top_k} exceeds num_experts={moe.num_experts}",
    )
    return ModelSpec(
        family=config.get("model_type"),
        hidden_size=config.size("hidden_size"),
        vocab_size=config.size("vocab_size"),
        max_position=config.size("max_position_embeddings"),
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        tie_embeddings=config.flag("tie_word_embeddings", False),
        attention=tuple(attention),
        layers=tuple(layers),
        moe=moe,
        dense_intermediate_size=dense_intermediate_size,
        dtype=dtype,
        weight_format=WEIGHT_FORMATS[beside or dtype],
        expert_format=WEIGHT_FORMATS[experts],
        eos_token_ids=eos_ids(config),
    )


def gqa_spec(
    config: Config, *, qk_norm: bool, bias: bool = False, theta: float = DEFAULT_THETA
) -> GqaSpec:
    """Grouped-query attention under the usual keys.

    bias: where the config does not say.
    theta: base of the rotation where the config does not say.
    """
    heads = config.size("num_attention_heads")
    kv_heads = config.size("num_key_value_heads")
    config.require(
        heads % kv_heads == 0,
        f"num_attention_heads={heads} is no multiple of num_key_value_heads={kv_heads}",
    )
    head_dim = config.size("head_dim", default=config.size("hidden_size") // heads)
    return GqaSpec(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        qk_norm=qk_norm,
        bias=config.flag("attention_bias", bias),
        rope=rope_spec(config, head_dim, "halves", theta),
    )


def stored_dtype(config: Config) -> str | None:
    """What the checkpoint's tensors are stored in, without torch's prefix."""
    stored = config.get("dtype", config.get("torch_dtype"))
    return None if stored is None else str(stored).removeprefix("torch.")


def eos_ids(config: Config) -> tuple[int, ...]:
    """End-of-sequence ids as configs write them: none, one or a list."""
    value = config.get("eos_token_id", ())
    ids = tuple(value) if isinstance(value, list | tuple) else (value,)
    config.require(
        all(isinstance(one, int) for one in ids),
        f"eos_token_id must be a token id or a list of them, found {value!r}",
    )
    return ids
