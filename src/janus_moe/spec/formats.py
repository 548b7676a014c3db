"""How numbers are stored: dtypes that are computed in, and formats of weights with their bytes.

This module knows nothing of torch, devices or kernels, and not which formats can be executed where.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from janus_moe.errors import ConfigError
from janus_moe.spec.base import Spec

Dtype = Literal["float32", "bfloat16"]
"""What activations and the KV cache are held in, and what is computed in."""

NumberFormat = Literal[
    "float32", "bfloat16", "float8_e4m3", "float8_e8m0", "int8", "float4_e2m1"
]  # fmt: skip
FormatName = Literal["float32", "bfloat16", "fp8", "int8", "mxfp4", "nvfp4"]

NUMBER_BITS: Mapping[NumberFormat, int] = {
    "float32": 32, "bfloat16": 16, "float8_e4m3": 8, "float8_e8m0": 8, "int8": 8, "float4_e2m1": 4,
}  # fmt: skip
DTYPE_BYTES: Mapping[Dtype, int] = {"float32": 4, "bfloat16": 2}


class WeightFormat(Spec, frozen=True):
    """How the weights of a matrix are stored: numbers, and what blocks of them share.

    name: what settings, tables and reports call it.
    values: format of each weight.
    block: (rows, columns) that share a scale; None means that there are no scales.
    scale: format of the factor of a block; None means that there are no scales.
    zero: format of the value of a block that stands for 0; None means that 0 does.
    """

    name: FormatName
    values: NumberFormat
    block: tuple[int, int] | None = None
    scale: NumberFormat | None = None
    zero: NumberFormat | None = None

    def __post_init__(self) -> None:
        if (self.block is None) != (self.scale is None) or (self.zero and self.block is None):
            raise ConfigError(f"weight format {self.name}: blocks and scales come together")

    @property
    def dtype(self) -> Dtype | None:
        """The dtype that a tensor of these weights has; None where they are in blocks."""
        if self.block is None and (self.values == "float32" or self.values == "bfloat16"):
            return self.values
        return None

    @property
    def bytes_per_weight(self) -> float:
        """Bytes of a weight with its share of the block's scale and zero, for whole blocks."""
        if self.block is None:
            return NUMBER_BITS[self.values] / 8
        return NUMBER_BITS[self.values] / 8 + self._bytes_per_block / math.prod(self.block)

    def num_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of matrices.

        shape: [..., rows, columns]; a vector is one row.
        """
        *outer, rows, columns = (1, *shape)
        values = math.prod(outer) * -(-rows * columns * NUMBER_BITS[self.values] // 8)
        if self.block is None:
            return values
        blocks = -(-rows // self.block[0]) * -(-columns // self.block[1])
        return values + math.prod(outer) * blocks * self._bytes_per_block

    @property
    def _bytes_per_block(self) -> int:
        """Bytes of what the weights of a block share."""
        shared = (kind for kind in (self.scale, self.zero) if kind is not None)
        return sum(NUMBER_BITS[kind] for kind in shared) // 8


WEIGHT_FORMATS: Mapping[FormatName, WeightFormat] = {
    one.name: one
    for one in (
        WeightFormat(name="float32", values="float32"),
        WeightFormat(name="bfloat16", values="bfloat16"),
        # DeepSeek-V3: a scale for each 128 x 128 weights
        WeightFormat(name="fp8", values="float8_e4m3", block=(128, 128), scale="float32"),
        WeightFormat(name="int8", values="int8", block=(128, 128), scale="float32"),
        # OCP Microscaling 1.0
        WeightFormat(name="mxfp4", values="float4_e2m1", block=(1, 32), scale="float8_e8m0"),
        WeightFormat(name="nvfp4", values="float4_e2m1", block=(1, 16), scale="float8_e4m3"),
    )
}
