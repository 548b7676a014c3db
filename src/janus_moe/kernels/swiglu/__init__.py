"""silu(gate) * up, from one tensor that holds both."""

from janus_moe.kernels.swiglu.dispatch import swiglu
from janus_moe.kernels.swiglu.reference import swiglu_reference

__all__ = ["swiglu", "swiglu_reference"]
