"""Which implementation of `linear` runs: decided here and nowhere else."""

import torch

from janus_moe.kernels.linear.reference import linear_reference
from janus_moe.kernels.linear.streaming import linear_streaming

STREAMING_MAX_TOKENS = 32  # measured cross-over, see `prefers_streaming`


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight.T + bias.

    x: [tokens, in]; weight: [out, in]; bias: [out]; all of one dtype, which the result
    [tokens, out] has too. Accumulates in float32.
    """
    same = weight.dtype == x.dtype and weight.is_contiguous() and x.dim() == 2
    supported = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    if same and supported and prefers_streaming(x.shape[0], weight.numel()):
        return linear_streaming(x, weight, bias)
    return linear_reference(x, weight, bias)


def prefers_streaming(tokens: int, weight_elements: int) -> bool:
    """Whether the streaming kernel beats torch on a CPU for so many tokens."""
    return 0 < tokens <= STREAMING_MAX_TOKENS
