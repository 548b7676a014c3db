"""Which implementation of `route` runs: decided here and nowhere else."""

from __future__ import annotations

import torch
from torch import Tensor

from janus_moe.kernels.route.fused import route_fused
from janus_moe.kernels.route.reference import route_reference
from janus_moe.spec import RouterSpec


def route(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, router: RouterSpec
) -> tuple[Tensor, Tensor]:
    """(expert_ids [tokens, top_k] int32, weights [tokens, top_k] float32).

    hidden: [tokens, hidden]; weight: [experts, hidden], its dtype is what the logits are computed
    in; bias: [experts] float32 where the router has a correction bias.

    A row's result depends on that row alone, so every expert instance that sees the same hidden
    states decides the same. Equal scores fall the same way for equal rows.
    """
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()
    if fits and hidden.shape[0] > 0:
        return route_fused(hidden, weight, bias, router)
    return route_reference(hidden, weight, bias, router)
