"""What fits measurements to facts: a law per operation, from data sheets, tables or a profile."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from janus_moe.errors import ConfigError
from janus_moe.planner.latency import facts
from janus_moe.planner.latency.arrays import Array, Numbers
from janus_moe.planner.latency.devices import DeviceProfile
from janus_moe.planner.latency.estimate import Confidence
from janus_moe.planner.latency.precision import Arithmetic
from janus_moe.spec import CacheOperation, FormatName, Spec

OperationKind = CacheOperation | Literal["gemm", "moe"]
"""Attention over the cache (units: tokens * heads of the cache), matrix products with all tokens
("gemm"), the routed experts of a layer ("moe", units: rows that arrive * hidden size * top-k)."""

MEMORY_EFFICIENCY, ARITHMETIC_EFFICIENCY = 0.75, 0.65
"""What kernels usually reach of the data sheet, where nothing was measured."""


class OpLaw(Spec, frozen=True):
    """The law of an operation.

    seconds = floor + depth * s_per_depth + units * s_per_unit
    + ((bytes * s_per_byte)^p + (flops * s_per_flop)^p)^(1/p).

    With a large p the last term is max(memory, arithmetic); with p = 1 nothing overlaps. The floor
    is added: launches and reductions do not overlap with the reading.

    floor_s: of any such operation.
    s_per_byte: reading.
    s_per_flop: arithmetic.
    s_per_depth: per link of the longest chain of operations, the columns of a matrix.
    s_per_unit: work beside reading and multiplying, see `OperationKind`.
    s_per_byte_wide: reading by kernels for many rows; None means as the others.
    p: how little memory and arithmetic overlap.
    confidence: in what it says.
    errors: relative, of shapes that the law was not fitted to.
    """

    floor_s: float
    s_per_byte: float
    s_per_flop: float
    s_per_depth: float = 0.0
    s_per_unit: float = 0.0
    s_per_byte_wide: float | None = None
    p: float = 8.0
    confidence: Confidence = "interpolated"
    errors: dict[str, float] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("floor_s", "s_per_byte", "s_per_flop", "s_per_depth", "s_per_unit"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not self.p >= 1:
            raise ConfigError(f"p must be 1 or more, got {self.p}")

    def seconds(
        self,
        num_bytes: Numbers,
        flops: Numbers,
        *,
        depth: Numbers = 0.0,
        units: Numbers = 0.0,
        wide: bool | NDArray[np.bool_] = False,
    ) -> Array:
        """Seconds of each operation; the arguments broadcast.

        wide: more rows than small tiles take.
        """
        per_byte: Numbers = self.s_per_byte
        if self.s_per_byte_wide is not None:
            per_byte = np.where(wide, self.s_per_byte_wide, self.s_per_byte)
        memory = np.asarray(num_bytes * per_byte, np.float64)
        arithmetic = np.asarray(flops * self.s_per_flop, np.float64)
        larger = np.maximum(memory, arithmetic)
        ratio = np.minimum(memory, arithmetic) / np.maximum(larger, 1e-30)
        both = larger * (1 + ratio**self.p) ** (1 / self.p)
        beside = self.floor_s + depth * self.s_per_depth + units * self.s_per_unit
        return np.asarray(beside + both, np.float64)


class LinkLaw(Spec, frozen=True):
    """seconds = latency + messages * message + bytes * s_per_byte, of one device sending."""

    latency_s: float
    message_s: float
    s_per_byte: float
    errors: dict[str, float] = msgspec.field(default_factory=dict)


class Coefficients(Spec, frozen=True):
    """The laws of a device.

    device: its name.
    source: what they were fitted to.
    laws: operation and format, e.g. `moe.fp8` -> law; the format is that of the weights, for
        attention that of the cache.
    intra: links inside a node; None means not measured.
    """

    device: str
    source: str
    laws: dict[str, OpLaw]
    intra: LinkLaw | None = None

    def law(
        self, operation: OperationKind, dtype: FormatName, computed_in: Arithmetic
    ) -> OpLaw | None:
        """The law of this format, or a guess from the arithmetic that it is computed in."""
        law = self.laws.get(f"{operation}.{dtype}")
        guess = self.laws.get(f"{operation}.{computed_in}")
        if law is None and guess is not None:
            return msgspec.structs.replace(guess, confidence="roofline")
        return law


def fitted_coefficients(device: str) -> Coefficients:
    """The fitted laws that ship for a device; none where nothing was measured."""
    if device not in facts.names("coefficients"):
        return Coefficients(device=device, source="none", laws={})
    found: Coefficients = facts.load("coefficients", device, Coefficients)
    return found


def roofline_law(device: DeviceProfile, arithmetic: Arithmetic) -> OpLaw:
    """launch + max(bytes over bandwidth, operations over throughput) with usual efficiencies."""
    return OpLaw(
        floor_s=device.launch_s,
        s_per_byte=1 / (MEMORY_EFFICIENCY * device.memory_bytes_per_s),
        s_per_flop=1 / (ARITHMETIC_EFFICIENCY * device.flops[arithmetic]),
        confidence="roofline",
    )
