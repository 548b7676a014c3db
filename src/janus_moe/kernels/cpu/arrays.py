"""Torch tensors as the numpy arrays that numba kernels take."""

from typing import Any

import torch


def elements(tensor: torch.Tensor) -> Any:
    """The tensor's memory as a numpy array; bfloat16 as uint16 bits, which the kernels widen."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    return tensor.numpy()
