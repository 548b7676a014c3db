"""Which implementation of `rms_norm` runs: decided here and nowhere else."""

import torch

from janus_moe.kernels.rms_norm.reference import rms_norm_reference
from janus_moe.kernels.rms_norm.streaming import rms_norm_streaming

STREAMING_MAX_TOKENS = 256  # beyond, threads are worth more than a call that starts at once


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x ** 2) + eps) * weight, over the last dimension.

    x: [..., width]; weight: [width]. Returns x's shape and dtype.
    """
    fits = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.dim() == 2
    if fits and x.shape[0] <= STREAMING_MAX_TOKENS and x.is_contiguous():
        return rms_norm_streaming(x, weight, eps)
    return rms_norm_reference(x, weight, eps)
