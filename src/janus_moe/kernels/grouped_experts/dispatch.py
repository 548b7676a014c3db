"""Which implementation of `grouped_experts` runs: decided here and nowhere else."""

import torch

from janus_moe.kernels.grouped_experts.gemm import grouped_experts_gemm
from janus_moe.kernels.grouped_experts.reference import grouped_experts_reference
from janus_moe.kernels.grouped_experts.streaming import grouped_experts_streaming

GEMM_TOKENS_PER_SLOT = 256  # measured cross-over, see `prefers_gemm`


def grouped_experts(
    hidden: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    slot_ids: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Partial outputs of the experts in this instance's slots.

    hidden: [tokens, hidden] float32 or bfloat16
    gate_up: [slots, 2 * width, hidden] of hidden's dtype, gate rows before up rows
    down: [slots, hidden, width] of hidden's dtype
    slot_ids: [tokens, top_k] int32, slot that computes this choice, -1 = not here or padding
    weights: [tokens, top_k] float32, router weights

    Returns [tokens, hidden] float32: the sum over choices with slot_ids >= 0 of
    weight * down(silu(gate x) * up x). All arithmetic is float32; bfloat16 inputs widen exactly
    and nothing is rounded back to bfloat16.
    """
    check_arguments(hidden, gate_up, down, slot_ids, weights)
    if hidden.device.type != "cpu":
        return grouped_experts_reference(hidden, gate_up, down, slot_ids, weights)
    if prefers_gemm(slot_ids.numel(), gate_up.shape[0]):
        return grouped_experts_gemm(hidden, gate_up, down, slot_ids, weights)
    return grouped_experts_streaming(hidden, gate_up, down, slot_ids, weights)


def prefers_gemm(pairs: int, slots: int) -> bool:
    """Whether BLAS beats the streaming kernel for `pairs` (token, choice) pairs on a CPU.

    Measured with one thread, hidden 1024, width 384, GEMM time over streaming time for 8, 32,
    128, 512 tokens per expert: 2.3, 1.8, 1.6, 1.2 with AVX-512 and 1.6, 1.2, 1.1, 0.9 with AVX2
    (float32; bfloat16 is alike, because the GEMM widens the weights first).
    """
    return pairs >= GEMM_TOKENS_PER_SLOT * slots


def check_arguments(
    hidden: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    slot_ids: torch.Tensor,
    weights: torch.Tensor,
) -> None:
    """Raise ValueError when shapes, dtypes or layout are outside the contract."""
    slots, double_width, size = gate_up.shape
    if hidden.shape[1] != size or down.shape != (slots, size, double_width // 2):
        raise ValueError(
            f"experts do not fit: hidden {tuple(hidden.shape)}, gate_up {tuple(gate_up.shape)}, "
            f"down {tuple(down.shape)}"
        )
    if slot_ids.shape != weights.shape or slot_ids.shape[0] != hidden.shape[0]:
        raise ValueError(
            f"routing does not fit {hidden.shape[0]} tokens: slot_ids {tuple(slot_ids.shape)}, "
            f"weights {tuple(weights.shape)}"
        )
    dtype = hidden.dtype
    if dtype not in (torch.float32, torch.bfloat16) or {gate_up.dtype, down.dtype} != {dtype}:
        raise ValueError(f"unsupported dtypes: {dtype}, {gate_up.dtype}, {down.dtype}")
    if slot_ids.dtype != torch.int32 or weights.dtype != torch.float32:
        raise ValueError(f"unsupported dtypes: slot_ids {slot_ids.dtype}, weights {weights.dtype}")
    if not (gate_up.is_contiguous() and down.is_contiguous()):
        raise ValueError("expert weights must be contiguous")
