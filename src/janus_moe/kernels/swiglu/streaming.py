"""CPU kernel, row by row; a row's result does not depend on the others."""

from typing import Any

import numba
import torch

from janus_moe.kernels.cpu.arrays import floats
from janus_moe.kernels.cpu.jit import helper, kernel, num_workers, parallel_region
from janus_moe.kernels.cpu.math import silu


def swiglu_streaming(gate_up: torch.Tensor) -> torch.Tensor:
    """Contract of `swiglu` for float32 CPU tensors."""
    out = torch.empty(gate_up.shape[0], gate_up.shape[1] // 2)
    with parallel_region():
        _run(floats(gate_up), out.numpy(), num_workers(gate_up.numel()))
    return out


@kernel
def _run(gate_up: Any, out: Any, workers: int) -> None:
    if workers == 1:
        _activate(gate_up, out)
        return
    share = (out.shape[0] + workers - 1) // workers
    for worker in numba.prange(workers):
        begin = worker * share
        _activate(gate_up[begin : begin + share], out[begin : begin + share])


@helper
def _activate(gate_up: Any, out: Any) -> None:
    for token in range(out.shape[0]):
        width = out.shape[1]
        gate, up, own = gate_up[token, :width], gate_up[token, width:], out[token]
        for i in range(width):
            own[i] = silu(gate[i]) * up[i]
