"""One matrix product per expert through torch's BLAS: best when an expert has many tokens."""

import torch
import torch.nn.functional as F


def grouped_experts_gemm(
    hidden: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    slot_ids: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Contract of `grouped_experts`; sorts the pairs by slot once and slices after that."""
    out = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    flat = slot_ids.flatten().long()
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat + 1, minlength=gate_up.shape[0] + 1).tolist()
    first = counts[0]  # pairs of other instances sort before slot 0
    for slot, count in enumerate(counts[1:]):
        if count:
            pairs = order[first : first + count]
            first += count
            tokens = pairs // slot_ids.shape[1]
            gate, up = F.linear(hidden[tokens].float(), gate_up[slot].float()).chunk(2, dim=-1)
            activations = F.silu(gate).mul_(up).mul_(weights.flatten()[pairs, None])
            out.index_add_(0, tokens, F.linear(activations, down[slot].float()))
    return out
