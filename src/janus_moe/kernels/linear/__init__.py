"""x @ weight.T + bias."""

from janus_moe.kernels.linear.dispatch import linear
from janus_moe.kernels.linear.reference import linear_reference

__all__ = ["linear", "linear_reference"]
