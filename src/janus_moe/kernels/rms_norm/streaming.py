"""CPU kernel; few rows take one thread. A row's result does not depend on the others."""

from typing import Any

import numba
import numpy as np
import torch

from janus_moe.kernels.cpu.arrays import elements
from janus_moe.kernels.cpu.jit import helper, kernel, num_workers, parallel_region
from janus_moe.kernels.cpu.rows import SUMS_SIZE, sum_of_squares


def rms_norm_streaming(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Contract of `rms_norm` for contiguous float32 CPU tensors, x [tokens, width]."""
    out = torch.empty_like(x)
    arrays = (elements(x), elements(weight), np.float32(eps), out.numpy())
    with parallel_region():
        _run(*arrays, num_workers(x.numel() // 2))
    return out


@kernel
def _run(x: Any, weight: Any, eps: Any, out: Any, workers: int) -> None:
    if workers == 1:
        normalise(x, weight, eps, out)
        return
    share = (x.shape[0] + workers - 1) // workers
    for worker in numba.prange(workers):
        begin = worker * share
        normalise(x[begin : begin + share], weight, eps, out[begin : begin + share])


@helper
def normalise(x: Any, weight: Any, eps: Any, out: Any) -> None:
    """Writes the normalised rows of x to out."""
    tokens, width = x.shape
    sums = np.empty(SUMS_SIZE, np.float32)
    for token in range(tokens):
        mean = sum_of_squares(x, token * width, width, sums) / np.float32(width)
        scale = np.float32(1) / np.sqrt(mean + eps)
        for i in range(width):
            out[token, i] = x[token, i] * scale * weight[i]
