"""Which implementation of `linear` runs: decided here and nowhere else."""

import torch

from janus_moe.kernels.cpu.ir import has_bfloat16_products, lanes
from janus_moe.kernels.linear.reference import linear_reference
from janus_moe.kernels.linear.streaming import linear_streaming

STREAMING_MAX_INPUTS_PER_LANE = 1 << 17  # measured cross-overs, see `prefers_streaming`
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
        and prefers_streaming(x.shape, x.dtype, has_bfloat16_products(), lanes())
    ):
        return linear_streaming(x, weight, bias)
    return linear_reference(x, weight, bias)


def prefers_streaming(
    shape: tuple[int, ...], dtype: torch.dtype, native_bfloat16: bool, vector_lanes: int
) -> bool:
    """Whether the streaming kernel beats torch on a CPU for x of this shape, [tokens, in].

    Measured on an EPYC with one thread and a 1024 x 1024 weight, torch's time over the kernel's for
    1, 4, 16, 64, 256, 1024 tokens: float32 1.4, 1.8, 1.8, 2.0, 2.0, 1.9 with AVX-512 and 1.5, 1.9,
    1.2, 1.1, 1.1, 1.1 with AVX2; bfloat16 1.4, 1.2, 0.8, 0.6, 0.5, 0.4 where the CPU multiplies
    bfloat16. Inputs of 4096 leave the caches sooner: 64, 256, 512, 1024 tokens 1.5, 1.1, 1.1, 0.8
    with AVX-512 and 1.1, 0.8, 0.9, 0.6 with AVX2.
    """
    tokens, in_size = shape
    if dtype == torch.bfloat16 and native_bfloat16:
        return 0 < tokens <= NATIVE_BFLOAT16_MAX_TOKENS
    return 0 < tokens * in_size <= STREAMING_MAX_INPUTS_PER_LANE * vector_lanes
