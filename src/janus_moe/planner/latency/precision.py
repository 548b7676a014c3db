"""Number formats: bytes of a weight, and which arithmetic computes with it."""

from __future__ import annotations

from typing import Literal

Format = Literal["float32", "bfloat16", "fp8", "int8", "mxfp4", "nvfp4"]
Arithmetic = Literal["float32", "bfloat16", "fp8", "int8", "fp4"]

BYTES_PER_WEIGHT: dict[Format, float] = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "fp8": 1.0 + 4 / 128**2,  # a float32 scale for each block of 128 x 128 (DeepSeek-V3)
    "int8": 1.0 + 4 / 128**2,
    "mxfp4": 0.5 + 1 / 32,  # a byte of scale for each 32 weights (OCP Microscaling 1.0)
    "nvfp4": 0.5 + 1 / 16,
}

BYTES_PER_ACTIVATION: dict[Format, int] = {
    "float32": 4, "bfloat16": 2, "fp8": 2, "int8": 2, "mxfp4": 2, "nvfp4": 2,
}  # fmt: skip
"""What travels between layers and instances: weights are quantised, hidden states are not."""

_NATIVE: dict[Format, Arithmetic] = {
    "float32": "float32", "bfloat16": "bfloat16", "fp8": "fp8", "int8": "int8",
    "mxfp4": "fp4", "nvfp4": "fp4",
}  # fmt: skip


def arithmetic(weights: Format, available: frozenset[str]) -> Arithmetic:
    """What a device with these arithmetics computes in; weights it cannot multiply are widened."""
    native = _NATIVE[weights]
    if native in available:
        return native
    return "bfloat16" if "bfloat16" in available else "float32"
