"""What fits measurements to facts: a law per operation, from data sheets, tables or a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from janus_moe.errors import ConfigError
from janus_moe.perf import facts
from janus_moe.perf.arrays import Array, Numbers
from janus_moe.perf.devices import DeviceProfile
from janus_moe.perf.estimate import Confidence
from janus_moe.perf.precision import Arithmetic
from janus_moe.spec import Spec

Operation = Literal["gemm", "gqa", "mla", "moe"]
"""Matrix products with all tokens; attention over the cache; the routed experts of a layer."""

MEMORY_EFFICIENCY, ARITHMETIC_EFFICIENCY = 0.75, 0.65
"""What kernels usually reach of the data sheet, where nothing was measured."""


class OpLaw(Spec, frozen=True):
    """seconds = (floor^p + (bytes * s_per_byte)^p + (flops * s_per_flop)^p)^(1/p)
    + s_per_token * tokens + s_per_unit * units.

    With a large p the first part is max(floor, memory, arithmetic); a small one rounds the corners,
    as kernels do that overlap badly. units: what an operation is made of besides bytes and flops,
    such as the tiles of a grouped product. errors: how far off the law was where it was fitted.
    """

    floor_s: float
    s_per_byte: float
    s_per_flop: float
    s_per_token: float = 0.0
    s_per_unit: float = 0.0
    p: float = 8.0
    confidence: Confidence = "interpolated"
    errors: dict[str, float] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("floor_s", "s_per_byte", "s_per_flop", "s_per_token", "s_per_unit"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not self.p >= 1:
            raise ConfigError(f"p must be 1 or more, got {self.p}")

    def seconds(
        self,
        num_bytes: Numbers,
        flops: Numbers,
        tokens: Numbers = 0.0,
        units: Numbers = 0.0,
    ) -> Array:
        """Of each operation; the arguments broadcast."""
        memory = np.asarray(num_bytes, np.float64) * self.s_per_byte
        arithmetic = np.asarray(flops, np.float64) * self.s_per_flop
        largest = np.maximum(np.maximum(memory, arithmetic), max(self.floor_s, 1e-12))
        total = (
            (self.floor_s / largest) ** self.p
            + (memory / largest) ** self.p
            + (arithmetic / largest) ** self.p
        )
        rounded = largest * total ** (1 / self.p)
        extra = np.asarray(tokens) * self.s_per_token + np.asarray(units) * self.s_per_unit
        return np.asarray(rounded + extra, np.float64)


class Coefficients(Spec, frozen=True):
    """Laws by operation and arithmetic, e.g. `moe.fp8`. source: what they were fitted to."""

    device: str
    source: str
    laws: dict[str, OpLaw]

    def law(self, operation: Operation, arithmetic: Arithmetic) -> OpLaw | None:
        return self.laws.get(f"{operation}.{arithmetic}")


def fitted_coefficients(device: str) -> Coefficients:
    """The fitted laws that ship for a device; none where nothing was measured."""
    if device not in facts.names("coefficients"):
        return Coefficients(device=device, source="none", laws={})
    found: Coefficients = facts.load("coefficients", device, Coefficients)
    return found


def read_coefficients(path: Path) -> Coefficients:
    """Laws from a file; raises ConfigError that names it."""
    return facts.decode(path, Coefficients)


def roofline_law(device: DeviceProfile, arithmetic: Arithmetic) -> OpLaw:
    """max(launch, bytes over bandwidth, operations over throughput) with usual efficiencies."""
    return OpLaw(
        floor_s=device.launch_s,
        s_per_byte=1 / (MEMORY_EFFICIENCY * device.memory_bytes_per_s),
        s_per_flop=1 / (ARITHMETIC_EFFICIENCY * device.flops[arithmetic]),
        confidence="roofline",
    )


def replace_law(coefficients: Coefficients, key: str, law: OpLaw) -> Coefficients:
    """The same with one law changed."""
    return msgspec.structs.replace(coefficients, laws={**coefficients.laws, key: law})
