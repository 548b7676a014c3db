"""Building blocks of the attention side: normalisation, rotary embedding, gated MLP.

Rotation multiplies complex numbers, for which the two halves of a pair must be neighbours. Models
that pair dimension i with i + d/2 get their projections' rows reordered on loading; scores do not
notice, because queries and keys are reordered alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from janus_moe.kernels.linear import linear
from janus_moe.model.loading import Loader
from janus_moe.spec import RopeSpec


def pair_order(rope: RopeSpec) -> Tensor:
    """[rotary_dim] int64: which stored dimension comes at each place so that pairs are adjacent."""
    order = torch.arange(2 * len(rope.inv_freq))
    if rope.layout == "interleaved":
        return order
    return order.view(2, -1).t().reshape(-1)


def rotation_table(rope: RopeSpec, max_len: int, device: torch.device) -> Tensor:
    """[max_len, rotary_dim / 2] complex64: the factor of each position and pair."""
    positions = torch.arange(max_len, dtype=torch.float32, device=device)
    frequencies = torch.tensor(rope.inv_freq, dtype=torch.float32, device=device)
    angles = torch.outer(positions, frequencies)
    return torch.polar(torch.full_like(angles, rope.attention_factor), angles)


@dataclass(frozen=True, slots=True)
class SwigluMlp:
    """down(silu(gate(x)) * up(x)).

    gate_up: [2 * width, hidden], gate above up; down: [hidden, width].
    """

    gate_up: Tensor
    down: Tensor

    @classmethod
    def load(cls, loader: Loader, kind: str, layer: int) -> SwigluMlp:
        """kind: "dense" or "shared"."""
        gate_up = loader.rows((f"{kind}_gate", f"{kind}_up"), layer)
        return cls(gate_up, loader.tensor(f"{kind}_down", layer))

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = linear(x, self.gate_up).chunk(2, dim=-1)
        return linear(F.silu(gate).mul_(up), self.down)
