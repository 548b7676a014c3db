"""Rotary embedding as complex factors: one table for each kind of rotation.

Rotation multiplies complex numbers, for which the two halves of a pair must be neighbours. Models
that pair dimension i with i + d/2 get their projections' rows reordered on loading; scores do not
notice, because queries and keys are reordered alike. This module knows no architecture.
"""

from __future__ import annotations

import torch
from torch import Tensor

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


class Rotations:
    """The tables of a model, each made once; layers that rotate alike share one."""

    def __init__(self, max_len: int, device: torch.device) -> None:
        """A model without tables yet, for sequences of up to `max_len` tokens."""
        self._max_len, self._device = max_len, device
        self._tables: dict[RopeSpec, Tensor] = {}

    def of(self, rope: RopeSpec) -> Tensor:
        """[max_len, rotary_dim / 2] complex64."""
        if rope not in self._tables:
            self._tables[rope] = rotation_table(rope, self._max_len, self._device)
        return self._tables[rope]
