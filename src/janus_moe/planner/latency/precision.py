"""Which arithmetic a device computes with weights of a format, and models in other formats.

The formats and their bytes are in `janus_moe.spec`; this module knows no device.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from janus_moe.spec import WEIGHT_FORMATS, Dtype, FormatName, ModelSpec

Arithmetic = Literal["float32", "bfloat16", "fp8", "int8", "fp4"]

_NATIVE: dict[FormatName, Arithmetic] = {
    "float32": "float32", "bfloat16": "bfloat16", "fp8": "fp8", "int8": "int8",
    "mxfp4": "fp4", "nvfp4": "fp4",
}  # fmt: skip


def arithmetic(weights: FormatName, available: frozenset[str]) -> Arithmetic:
    """What a device with these arithmetics computes in; weights it cannot multiply are widened."""
    native = _NATIVE[weights]
    if native in available:
        return native
    return "bfloat16" if "bfloat16" in available else "float32"


def with_precision(
    model: ModelSpec, weights: FormatName | None, experts: FormatName | None
) -> ModelSpec:
    """The same model quantised otherwise.

    Hidden states are not quantised: they stay in bfloat16 unless the weights are float32.

    weights: of all matrices; None means as they are.
    experts: of the routed experts; None means as the other weights.
    """
    dtype: Dtype = model.dtype
    if weights is not None:
        dtype = "float32" if weights == "float32" else "bfloat16"
    chosen = experts or weights
    return msgspec.structs.replace(
        model,
        dtype=dtype,
        weight_format=WEIGHT_FORMATS[weights] if weights else model.weight_format,
        expert_format=WEIGHT_FORMATS[chosen] if chosen else model.expert_format,
    )
