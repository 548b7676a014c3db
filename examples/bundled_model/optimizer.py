"""Muon for matrices, AdamW for the rest; both take the learning-rate scale from the caller.

Knows nothing of the model beyond the shapes of the parameters it is given.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def orthogonalize(update: Tensor, num_steps: int = 5) -> Tensor:
    """Newton-Schulz: `update: [..., rows, columns]` to about the nearest semi-orthogonal matrix."""
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = update.shape[-2] > update.shape[-1]
    x = (update.mT if is_tall else update).to(torch.bfloat16)
    x = x / (x.float().square().sum((-2, -1), keepdim=True).sqrt() + 1e-7).to(torch.bfloat16)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if is_tall else x).to(update.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, then orthogonalization; leading dimensions are a batch of independent matrices."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                grad = parameter.grad
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(grad)
                momentum = state["momentum"]
                momentum.lerp_(grad, 1 - group["momentum"])
                update = orthogonalize(grad.lerp(momentum, group["momentum"]))
                rows, columns = parameter.shape[-2:]
                scale = max(1.0, rows / columns) ** 0.5
                parameter.add_(update, alpha=-group["lr"] * scale)
