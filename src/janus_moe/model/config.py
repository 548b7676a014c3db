"""Reads what a checkpoint folder says about its model, without touching the weights.

Code that comes with a checkpoint is never run. What the keys mean is in `janus_moe.families`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import msgspec

from janus_moe.errors import CheckpointError
from janus_moe.families import describe_model
from janus_moe.families.config import Config
from janus_moe.families.description import eos_ids, stored_dtype
from janus_moe.spec import WEIGHT_FORMATS, Dtype, ModelSpec


def read_spec(
    folder: Path, dtype: Literal["auto", "float32", "bfloat16"] = "auto", device: str = "cpu"
) -> ModelSpec:
    """The spec of the checkpoint in a folder, in the formats that it will be held in.

    dtype: "auto" keeps the checkpoint's own; float16 becomes bfloat16 on a GPU and float32 on a
        CPU, where that loses nothing.

    Raises CheckpointError that says what the engine lacks for the model.
    """
    path = folder / "config.json"
    raw = _read_json(path)
    described = describe_model(raw)
    if not described.can_be_served:
        raise CheckpointError(f"{path} cannot be used: {'; '.join(described.obstacles)}")
    chosen = _choose_dtype(stored_dtype(Config(raw)), dtype, device)
    return msgspec.structs.replace(
        described.spec,
        dtype=chosen,
        weight_format=WEIGHT_FORMATS[chosen],
        expert_format=WEIGHT_FORMATS[chosen],
        eos_token_ids=_eos_token_ids(folder, described.spec.eos_token_ids),
        name=folder.name,
    )


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


def _choose_dtype(stored: str | None, dtype: str, device: str) -> Dtype:
    if dtype == "float32" or dtype == "bfloat16":
        return "float32" if dtype == "float32" else "bfloat16"
    if stored == "bfloat16" or (stored == "float16" and device.startswith("cuda")):
        return "bfloat16"
    return "float32"


def _eos_token_ids(folder: Path, fallback: tuple[int, ...]) -> tuple[int, ...]:
    """From generation_config.json, which chat models use to add their end-of-turn token."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return fallback
    return eos_ids(Config(_read_json(path), path.name)) or fallback
