"""Root-mean-square normalisation of rows."""

from janus_moe.kernels.rms_norm.dispatch import rms_norm
from janus_moe.kernels.rms_norm.reference import rms_norm_reference

__all__ = ["rms_norm", "rms_norm_reference"]
