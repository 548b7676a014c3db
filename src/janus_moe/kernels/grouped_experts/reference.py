"""The obvious implementation, for any device: one expert after another, one token row at a time.

Arithmetic is float32, sums over experts are float64. bfloat16 inputs are widened (exactly) and
nothing is rounded back to bfloat16.
"""

import torch
import torch.nn.functional as F


def grouped_experts_reference(
    hidden: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    slot_ids: torch.Tensor,
    weights: torch.Tensor,
    *,
    sums: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Contract of `grouped_experts`."""
    out = torch.zeros(hidden.shape, dtype=torch.float64, device=hidden.device)
    for slot in torch.unique(slot_ids[slot_ids >= 0]).tolist():
        tokens, choices = torch.nonzero(slot_ids == slot, as_tuple=True)
        gate, up = F.linear(hidden[tokens].float(), gate_up[slot].float()).chunk(2, dim=-1)
        activations = weights[tokens, choices, None] * F.silu(gate) * up
        out.index_add_(0, tokens, F.linear(activations, down[slot].float()).double())
    return out.to(sums)
