"""The architectures, as data: how a config.json becomes a `ModelSpec`, what tensors are called.

    config        typed keys of a config      description    what families share
    rope          rotary frequencies          tensor_names   role -> name in a checkpoint
    qwen, deepseek, planned                   the families

One reading serves the engine and the planner. Whether the engine can run a model is a property of
what was read: `ModelDescription.obstacles`. Nothing here knows torch, weights or how anything is
computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from janus_moe.errors import CheckpointError
from janus_moe.families.config import Config
from janus_moe.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from janus_moe.families.description import Family
from janus_moe.families.planned import GPT_OSS, GROK, MIXTRAL, OLMOE
from janus_moe.families.qwen import QWEN2_MOE, QWEN3_MOE
from janus_moe.spec import ModelSpec

__all__ = ["FAMILIES", "Family", "ModelDescription", "describe_model", "find_family"]

FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        *(DEEPSEEK_V2, DEEPSEEK_V3, GPT_OSS, GROK),
        *(MIXTRAL, OLMOE, QWEN2_MOE, QWEN3_MOE),
    )
}


@dataclass(frozen=True)
class ModelDescription:
    """What a config.json says.

    spec: the model, in the formats that the checkpoint is stored in.
    obstacles: why the engine cannot run it, as clauses; empty means that it can.
    """

    spec: ModelSpec
    obstacles: tuple[str, ...]

    @property
    def can_be_served(self) -> bool:
        return not self.obstacles


def describe_model(raw: Mapping[str, Any]) -> ModelDescription:
    """Reads a config.json.

    Raises CheckpointError for an unknown architecture and where the file contradicts itself.
    """
    family = find_family(str(raw.get("model_type", "(none)")), needs_code="auto_map" in raw)
    config = Config(raw)
    spec = family.read(config)
    missing = f"for {family.model_type} the engine lacks {', '.join(family.missing)}"
    return ModelDescription(spec, (*([missing] if family.missing else []), *config.obstacles))


def find_family(model_type: str, needs_code: bool = False) -> Family:
    """The family of a config's `model_type`.

    needs_code: whether the checkpoint brings code of its own, for the error.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    served = [name for name, family in FAMILIES.items() if not family.missing]
    others = [name for name, family in FAMILIES.items() if family.missing]
    known = f"supported are {', '.join(served)}, and for planning also {', '.join(others)}"
    if needs_code:
        raise CheckpointError(
            f"architecture {model_type!r} needs code from its checkpoint (auto_map), which is "
            f"never run; {known}"
        )
    raise CheckpointError(f"architecture {model_type!r} is not supported; {known}")
