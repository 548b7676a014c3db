"""Which implementation of `grouped_experts` runs: decided here and nowhere else."""

import torch

from janus_moe.kernels.grouped_experts.reference import grouped_experts_reference
from janus_moe.kernels.grouped_experts.streaming import grouped_experts_streaming


def grouped_experts(
    hidden: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    slot_ids: torch.Tensor,
    weights: torch.Tensor,
    *,
    sums: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Partial outputs of the experts in this instance's slots.

    hidden: [tokens, hidden] float32 or bfloat16
    gate_up: [slots, 2 * width, hidden] of hidden's dtype, gate rows before up rows
    down: [slots, hidden, width] of hidden's dtype
    slot_ids: [tokens, top_k] int32, slot that computes this choice, -1 = not here or padding
    weights: [tokens, top_k] float32, router weights
    sums: float32 or float64, dtype of the result

    Returns [tokens, hidden] of that dtype: the sum over choices with slot_ids >= 0 of
    weight * down(silu(gate x) * up x). Arithmetic is float32, the sum over choices float64;
    bfloat16 inputs widen exactly and nothing is rounded back to bfloat16. On a CPU a token's result
    depends neither on the other tokens nor on the slots that its experts have.
    """
    check_arguments(hidden, gate_up, down, slot_ids, weights)
    if hidden.device.type != "cpu":
        return grouped_experts_reference(hidden, gate_up, down, slot_ids, weights, sums=sums)
    return grouped_experts_streaming(hidden, gate_up, down, slot_ids, weights, sums)


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
