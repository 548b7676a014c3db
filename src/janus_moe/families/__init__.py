"""The supported architectures, each a small module of data: how its config becomes a `ModelSpec`
and what its tensors are called. Adding one touches nothing outside this package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from janus_moe.errors import CheckpointError
from janus_moe.families import deepseek_v2, deepseek_v3, qwen3_moe
from janus_moe.spec import Dtype, ModelSpec


@dataclass(frozen=True)
class Family:
    """One architecture.

    spec_from_config: (Hugging Face config, dtype) -> ModelSpec; raises CheckpointError.
    tensor_names: role -> name template with {layer} and {expert}.
    """

    spec_from_config: Callable[[Any, Dtype], ModelSpec]
    tensor_names: Mapping[str, str]


FAMILIES: Mapping[str, Family] = {
    module.MODEL_TYPE: Family(module.spec_from_config, module.TENSOR_NAMES)
    for module in (qwen3_moe, deepseek_v2, deepseek_v3)
}


def find_family(model_type: str) -> Family:
    """The family of a config's `model_type`."""
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"architecture {model_type!r} is not supported; supported are "
            f"{', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]


def spec_from_config(hf_config: Any, dtype: Dtype) -> ModelSpec:
    """The spec of a Hugging Face config of any supported architecture."""
    return find_family(hf_config.model_type).spec_from_config(hf_config, dtype)
