"""The torch dtype of every dtype that a spec can name; the only such table."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from janus_moe.errors import CheckpointError
from janus_moe.spec import Dtype, WeightFormat

TORCH_DTYPES: Mapping[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}


def torch_dtype(weights: WeightFormat) -> torch.dtype:
    """The dtype of a tensor of weights; raises CheckpointError where they are in blocks."""
    if weights.dtype is None:
        raise CheckpointError(
            f"weights in {weights.name} cannot be computed with; convert the checkpoint to one of "
            f"{', '.join(TORCH_DTYPES)}"
        )
    return TORCH_DTYPES[weights.dtype]
