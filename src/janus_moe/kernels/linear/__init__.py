"""x @ weight.T + bias, of rows or of the heads of rows."""

from janus_moe.kernels.linear.dispatch import head_linear, linear
from janus_moe.kernels.linear.reference import linear_reference

__all__ = ["head_linear", "linear", "linear_reference"]
