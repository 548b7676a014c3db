"""Elementary functions that LLVM can vectorise (numba's own call libm once per element)."""

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from janus_moe.kernels.cpu.jit import helper


@intrinsic  # type: ignore[untyped-decorator]
def _float_of_bits(typing: Any, bits: Any) -> Any:
    """The float32 with these bits (int32)."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.int32), generate


@helper
def exp(x: Any) -> Any:
    """e**x in float32, within 3 units in the last place; inputs are clamped to [-87, 88]."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * _float_of_bits((np.int32(n) + np.int32(127)) << np.int32(23))


@helper
def silu(x: Any) -> Any:
    """x * sigmoid(x)."""
    return x / (np.float32(1.0) + exp(-x))
