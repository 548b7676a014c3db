"""Reads what a checkpoint folder says about its model, without touching the weights.

Code that comes with a checkpoint is never run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import msgspec
from huggingface_hub.errors import StrictDataclassError

from janus_moe.errors import CheckpointError
from janus_moe.families import FAMILIES, find_family, spec_from_config
from janus_moe.families.common import eos_ids
from janus_moe.spec import Dtype, ModelSpec


def read_spec(
    folder: Path, dtype: Literal["auto", "float32", "bfloat16"] = "auto", device: str = "cpu"
) -> ModelSpec:
    """The spec of the checkpoint in `folder`.

    dtype: "auto" keeps the checkpoint's own; float16 becomes bfloat16 on a GPU and float32 on a
        CPU, where that loses nothing.
    """
    raw = _read_json(folder / "config.json")
    _check_supported(raw)
    config = _load_config(folder)
    spec = spec_from_config(config, _choose_dtype(config, dtype, device))
    return msgspec.structs.replace(spec, eos_token_ids=_eos_token_ids(folder, spec.eos_token_ids))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; a model folder needs a {path.name}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


def _check_supported(raw: dict[str, Any]) -> None:
    model_type = str(raw.get("model_type", "(none)"))
    if model_type not in FAMILIES and "auto_map" in raw:
        raise CheckpointError(
            f"architecture {model_type!r} needs code from its checkpoint (auto_map), which is "
            f"never run; supported are {', '.join(sorted(FAMILIES))}"
        )
    find_family(model_type)
    quantization = raw.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise CheckpointError(
            f"the checkpoint is quantised ({method or 'unknown method'}), which is not supported; "
            "use or convert to a bfloat16, float16 or float32 version"
        )


def _load_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, TypeError, KeyError, AttributeError, OSError, StrictDataclassError) as e:
        problem = " ".join(str(e).split())
        raise CheckpointError(f"{folder / 'config.json'} cannot be used: {problem}") from e


def _choose_dtype(config: Any, dtype: str, device: str) -> Dtype:
    if dtype == "float32" or dtype == "bfloat16":
        return "float32" if dtype == "float32" else "bfloat16"
    stored = str(getattr(config, "dtype", None)).removeprefix("torch.")
    if stored == "bfloat16" or (stored == "float16" and device.startswith("cuda")):
        return "bfloat16"
    return "float32"


def _eos_token_ids(folder: Path, fallback: tuple[int, ...]) -> tuple[int, ...]:
    """From generation_config.json, which chat models use to add their end-of-turn token."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return fallback
    return eos_ids(_read_json(path).get("eos_token_id")) or fallback
