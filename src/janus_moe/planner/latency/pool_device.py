"""A pool's device with the laws of its operations, and the host time that no operation has.

This module knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass

from janus_moe.planner.latency.coefficients import (
    Coefficients,
    OperationKind,
    OpLaw,
    fitted_coefficients,
    roofline_law,
)
from janus_moe.planner.latency.devices import DeviceProfile, device_profile
from janus_moe.planner.latency.estimate import Confidence
from janus_moe.planner.latency.precision import Arithmetic, arithmetic
from janus_moe.spec import FormatName


@dataclass(frozen=True)
class PoolDevice:
    """One pool's device, with the laws that hold for its operations.

    device: its facts.
    coefficients: the laws that were fitted for it.
    """

    device: DeviceProfile
    coefficients: Coefficients

    @classmethod
    def of(cls, name: str) -> PoolDevice:
        """A known device with the laws fitted for it, roofline where there are none."""
        return cls(device_profile(name), fitted_coefficients(name))

    def law(self, operation: OperationKind, dtype: FormatName) -> OpLaw:
        """The law of an operation with weights, or a cache, of this format."""
        kind: Arithmetic = arithmetic(dtype, frozenset(self.device.flops))
        return self.coefficients.law(operation, dtype, kind) or roofline_law(self.device, kind)


@dataclass(frozen=True, kw_only=True)
class Overheads:
    """Host and launch time that no operation has.

    step_s: once a step (scheduling, sampling).
    token_s: per token of the whole batch and step.
    attention_layer_s: per layer and micro-batch on the attention side.
    expert_layer_s: per layer and micro-batch on the expert side.
    attention_token_s: per layer and token of an attention instance.
    confidence: of them.
    """

    step_s: float = 0.0
    token_s: float = 0.0
    attention_layer_s: float = 0.0
    expert_layer_s: float = 0.0
    attention_token_s: float = 0.0
    confidence: Confidence = "roofline"

    @classmethod
    def of(cls, attention: DeviceProfile, expert: DeviceProfile) -> Overheads:
        """What captured graphs leave: small kernels at the launch time of each, half overlapped.

        Those of a layer are norms, rotation, cache write and residuals; gate, top-k, schedule and
        weighted sum.
        """
        return cls(
            step_s=20 * attention.launch_s,
            attention_layer_s=3 * attention.launch_s,
            expert_layer_s=3 * expert.launch_s,
        )
