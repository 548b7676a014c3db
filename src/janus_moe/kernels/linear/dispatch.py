"""Which implementation of `linear` runs: decided here and nowhere else."""

import torch

from janus_moe.kernels.cpu.ir import has_bfloat16_products
from janus_moe.kernels.linear.reference import linear_reference
from janus_moe.kernels.linear.streaming import head_linear_streaming, linear_streaming

NATIVE_BFLOAT16_MAX_TOKENS = 8


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight.T + bias.

    x: [tokens, in]; weight: [out, in]; bias: [out]; all of one dtype, which the result
    [tokens, out] has too. Accumulates in float32. In float32 on a CPU a token's result does not
    depend on the other tokens.
    """
    same = weight.dtype == x.dtype and weight.is_contiguous() and x.dim() == 2
    supported = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    if (
        same
        and supported
        and weight.numel() > 0
        and streams(x.shape[0], x.dtype, has_bfloat16_products())
    ):
        return linear_streaming(x, weight, bias)
    return linear_reference(x, weight, bias)


def head_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A product for each head.

    x: [tokens, heads, in]; weight: [heads, in, out]. Returns [tokens, heads, out]. In float32 on a
    CPU a token's result does not depend on the others.
    """
    rows = weight.transpose(1, 2)
    if x.device.type == "cpu" and x.dtype == torch.float32 and rows.is_contiguous():
        return head_linear_streaming(x, rows)
    return torch.bmm(x.transpose(0, 1), weight).transpose(0, 1)


def streams(tokens: int, dtype: torch.dtype, native_bfloat16: bool) -> bool:
    """Whether the streaming kernel runs, on a CPU.

    float32 always: the rule must not look at the number of tokens. Measured with one thread and a
    weight of 1024 columns, torch's time over the kernel's for 1, 16, 64, 256, 1024 tokens: 1.4,
    1.8, 2.0, 2.0, 1.9 on an EPYC with AVX-512, 1.5, 1.2, 1.1, 1.1, 1.1 there with AVX2, and 1.5,
    1.4, 1.0, 0.8, 0.8 on a Xeon. bfloat16 1.4, 0.8, 0.6, 0.5, 0.4 where the CPU multiplies it.
    """
    if dtype == torch.bfloat16 and native_bfloat16:
        return 0 < tokens <= NATIVE_BFLOAT16_MAX_TOKENS
    return tokens > 0
