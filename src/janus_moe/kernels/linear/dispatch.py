"""Which implementation of `linear` runs: decided here and nowhere else."""

import torch

from janus_moe.kernels.cpu.ir import has_bfloat16_products
from janus_moe.kernels.linear.reference import linear_reference
from janus_moe.kernels.linear.streaming import linear_streaming

STREAMING_MAX_TOKENS = 256  # measured cross-overs, see `prefers_streaming`
NATIVE_BFLOAT16_MAX_TOKENS = 8


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight.T + bias.

    x: [tokens, in]; weight: [out, in]; bias: [out]; all of one dtype, which the result
    [tokens, out] has too. Accumulates in float32.
    """
    same = weight.dtype == x.dtype and weight.is_contiguous() and x.dim() == 2
    supported = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    if (
        same
        and supported
        and weight.numel() > 0
        and prefers_streaming(x.shape[0], x.dtype, has_bfloat16_products())
    ):
        return linear_streaming(x, weight, bias)
    return linear_reference(x, weight, bias)


def prefers_streaming(tokens: int, dtype: torch.dtype, native_bfloat16: bool) -> bool:
    """Whether the streaming kernel beats torch on a CPU for so many tokens.

    Measured with one thread and a 1024 x 1024 weight, torch's time over the kernel's for 1, 4,
    16, 64, 256, 1024 tokens: float32 1.2, 1.6, 1.5, 1.5, 1.4, 1.1 with AVX-512 and 1.1, 1.4, 1.2,
    1.1, 1.0, 1.0 with AVX2; bfloat16 1.3, 1.5, 0.8, 0.5, 0.4, 0.3 where the CPU multiplies
    bfloat16 and 1.2, 2.7, 3.1, 3.3, 3.5, 3.7 where it does not.
    """
    if dtype == torch.bfloat16 and native_bfloat16:
        return 0 < tokens <= NATIVE_BFLOAT16_MAX_TOKENS
    return 0 < tokens <= STREAMING_MAX_TOKENS
