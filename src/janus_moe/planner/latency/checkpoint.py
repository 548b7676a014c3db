"""Facts from a checkpoint's config.json or a `ModelSpec`. Sizes only: no capability is checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from janus_moe.errors import CheckpointError
from janus_moe.planner.latency.models import GqaFacts, MlaFacts, ModelFacts
from janus_moe.planner.latency.precision import Format
from janus_moe.spec import MlaSpec, ModelSpec

_BUNDLED = Path(__file__).parents[2] / "bundled"

_DTYPES: Mapping[str, Format] = {
    "float32": "float32", "float16": "bfloat16", "bfloat16": "bfloat16",
}  # fmt: skip
_QUANTISED: Mapping[str, Format] = {"fp8": "fp8", "mxfp4": "mxfp4"}


def folder_of(name: str) -> Path | None:
    """The checkpoint folder that `name` means, None if it means none."""
    if name == "bundled":
        return _BUNDLED
    path = Path(name)
    return path if (path / "config.json").is_file() else None


def facts_of_folder(folder: Path) -> ModelFacts:
    """Facts of a checkpoint; raises CheckpointError that names what config.json lacks."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(config).__name__}")
    try:
        return facts_of_config(config, folder.name, str(path))
    except KeyError as error:
        raise CheckpointError(f"{path} has no {error.args[0]}") from None
    except TypeError as error:
        raise CheckpointError(f"{path} has a value of the wrong kind: {error}") from None


def facts_of_config(config: Mapping[str, Any], name: str, source: str) -> ModelFacts:
    """Facts of a Hugging Face config as a mapping; raises KeyError with the missing key."""
    layers = int(config["num_hidden_layers"])
    width = config.get("moe_intermediate_size")
    shared = config.get("shared_expert_intermediate_size")
    if shared is None:
        shared = (config.get("n_shared_experts") or 0) * (width or 0)
    dense = config.get("first_k_dense_replace") or len(config.get("mlp_only_layers") or ())
    stored = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    dtype = _DTYPES.get(stored, "bfloat16")
    method = (config.get("quantization_config") or {}).get("quant_method", "")
    experts = _QUANTISED.get(method, dtype)
    return ModelFacts(
        name=name,
        title=name,
        source=source,
        num_layers=layers,
        num_dense_layers=int(dense),
        hidden_size=int(config["hidden_size"]),
        attention=_attention(config, layers),
        num_experts=int(_first(config, "num_experts", "n_routed_experts", "num_local_experts")),
        top_k=int(_first(config, "num_experts_per_tok", "experts_per_token")),
        expert_width=int(width or config["intermediate_size"]),
        vocab_size=int(config["vocab_size"]),
        shared_width=int(shared),
        dense_width=int(config["intermediate_size"]) if dense else 0,
        tied_embeddings=bool(config.get("tie_word_embeddings")),
        max_position=int(config.get("max_position_embeddings") or 0),
        weight_dtype=experts if method == "fp8" else dtype,
        expert_dtype=experts,
    )


def facts_of_spec(spec: ModelSpec, name: str) -> ModelFacts:
    """Facts of what the engine runs, in the dtype it runs in."""
    attention: GqaFacts | MlaFacts
    (kind,) = spec.attention
    if isinstance(kind, MlaSpec):
        attention = MlaFacts(
            num_heads=kind.num_heads,
            q_lora_rank=kind.q_lora_rank,
            kv_lora_rank=kind.kv_lora_rank,
            nope_head_dim=kind.nope_head_dim,
            rope_head_dim=kind.rope_head_dim,
            value_head_dim=kind.value_head_dim,
        )
    else:
        attention = GqaFacts(
            num_heads=kind.num_heads,
            num_kv_heads=kind.num_kv_heads,
            head_dim=kind.head_dim,
        )
    return ModelFacts(
        name=name,
        title=name,
        source="checkpoint",
        num_layers=spec.num_layers,
        num_dense_layers=spec.num_dense_layers,
        hidden_size=spec.hidden_size,
        attention=attention,
        num_experts=spec.moe.num_experts,
        top_k=spec.moe.router.top_k,
        expert_width=spec.moe.intermediate_size,
        vocab_size=spec.vocab_size,
        shared_width=spec.moe.shared_intermediate_size,
        dense_width=spec.dense_intermediate_size,
        tied_embeddings=spec.tie_embeddings,
        max_position=spec.max_position,
        weight_dtype=spec.dtype,
        expert_dtype=spec.dtype,
    )


def _first(config: Mapping[str, Any], *keys: str) -> Any:
    for key in keys:
        if config.get(key) is not None:
            return config[key]
    raise KeyError(" or ".join(keys))


def _attention(config: Mapping[str, Any], layers: int) -> GqaFacts | MlaFacts:
    heads = int(config["num_attention_heads"])
    if config.get("kv_lora_rank"):
        return MlaFacts(
            num_heads=heads,
            q_lora_rank=config.get("q_lora_rank"),
            kv_lora_rank=int(config["kv_lora_rank"]),
            nope_head_dim=int(config["qk_nope_head_dim"]),
            rope_head_dim=int(config["qk_rope_head_dim"]),
            value_head_dim=int(config["v_head_dim"]),
        )
    kinds = config.get("layer_types") or ()
    windowed = sum(kind == "sliding_attention" for kind in kinds)
    return GqaFacts(
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
        window=config.get("sliding_window") if windowed else None,
        num_windowed_layers=windowed,
    )
