"""Torch tensors as the numpy arrays that numba kernels take.

A call of torch costs about a microsecond and a small kernel not much more, so a tensor that already
is as it has to be is handed on at once.
"""

from typing import Any

import torch


def elements(tensor: torch.Tensor) -> Any:
    """The tensor's memory as a numpy array; bfloat16 as uint16 bits, which the kernels widen."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    return tensor.numpy()


def floats(tensor: torch.Tensor) -> Any:
    """The tensor's values as a contiguous float32 array, which is its memory where it can be."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype != torch.float32:
        tensor = tensor.float()
    return tensor.contiguous().numpy()
