"""What `gqa_layer` reads of a layer; who loads and holds it is not known here."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class GqaTensors(Protocol):
    """The weights of one layer, all of one dtype; rotary pairs are adjacent."""

    @property
    def input_norm(self) -> Tensor:
        """[hidden], before the attention."""

    @property
    def qkv(self) -> Tensor:
        """[(heads + 2 * kv_heads) * head_dim, hidden], queries above keys above values."""

    @property
    def qkv_bias(self) -> Tensor | None:
        """[rows of qkv]; None means none."""

    @property
    def qk_norm(self) -> Tensor | None:
        """[heads + kv_heads, head_dim], norm weight of each query and key head; None means none."""

    @property
    def o(self) -> Tensor:
        """[hidden, heads * head_dim]."""

    @property
    def o_bias(self) -> Tensor | None:
        """[hidden]; None means none."""

    @property
    def output_norm(self) -> Tensor:
        """[hidden], after the attention and before the MLP."""

    @property
    def eps(self) -> float:
        """Of all norms."""

    @property
    def scale(self) -> float:
        """Of the scores before the softmax."""
