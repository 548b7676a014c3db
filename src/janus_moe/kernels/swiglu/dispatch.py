"""Which implementation of `swiglu` runs: decided here and nowhere else."""

import torch

from janus_moe.kernels.swiglu.reference import swiglu_reference
from janus_moe.kernels.swiglu.streaming import swiglu_streaming


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up.

    gate_up: [tokens, 2 * width], gate before up. Returns [tokens, width] of its dtype. In float32
    on a CPU a token's result does not depend on the others; torch's function takes other paths
    where its threads share a row.
    """
    if gate_up.device.type == "cpu" and gate_up.dtype == torch.float32 and gate_up.dim() == 2:
        return swiglu_streaming(gate_up)
    return swiglu_reference(gate_up)
