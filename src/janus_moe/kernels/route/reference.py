"""The obvious implementation, for any device: torch."""

from __future__ import annotations

import torch
from torch import Tensor

from janus_moe.kernels.linear import linear
from janus_moe.spec import RouterSpec

NORMALIZER_EPS = 1e-20  # keeps a sum of sigmoids that underflowed from dividing by zero


def route_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, router: RouterSpec
) -> tuple[Tensor, Tensor]:
    """Contract of `route`."""
    return select(linear(hidden.to(weight.dtype), weight).float(), bias, router)


def select(logits: Tensor, bias: Tensor | None, router: RouterSpec) -> tuple[Tensor, Tensor]:
    """Contract of `route` from the router's logits, [tokens, experts] float32."""
    if router.scoring == "softmax" and router.normalize and router.num_groups == 1 and bias is None:
        top, ids = logits.topk(router.top_k, dim=-1)
        weights = top.softmax(dim=-1)  # softmax over all, renormalised over the chosen
    else:
        weights, ids = _select_by_score(logits, bias, router)
    if router.scaling_factor != 1.0:
        weights = weights * router.scaling_factor
    return ids.to(torch.int32), weights


def _select_by_score(
    logits: Tensor, bias: Tensor | None, router: RouterSpec
) -> tuple[Tensor, Tensor]:
    scores = logits.softmax(dim=-1) if router.scoring == "softmax" else logits.sigmoid()
    choice = scores if bias is None else scores + bias
    if router.num_groups > 1:
        choice = _keep_best_groups(choice, router)
    weights, ids = choice.topk(router.top_k, dim=-1)
    if bias is not None:
        weights = scores.gather(1, ids)
    if router.normalize:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + NORMALIZER_EPS)
    return weights, ids


def _keep_best_groups(choice: Tensor, router: RouterSpec) -> Tensor:
    """-inf for all experts outside the best groups; [tokens, experts]."""
    tokens, experts = choice.shape
    grouped = choice.view(tokens, router.num_groups, experts // router.num_groups)
    if router.group_score == "max":
        group_scores = grouped.amax(dim=-1)
    else:
        group_scores = grouped.topk(2, dim=-1).values.sum(dim=-1)
    best = group_scores.topk(router.top_groups, dim=-1).indices
    penalty = torch.full_like(group_scores, float("-inf")).scatter_(1, best, 0.0)
    return (grouped + penalty.unsqueeze(-1)).view(tokens, experts)
