"""What the attention half of one layer is made of."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class GqaLayerWeights:
    """Weights of one layer, all of one dtype; rotary pairs are adjacent.

    input_norm, output_norm: [hidden], before the attention and before the MLP.
    qkv: [(heads + 2 * kv_heads) * head_dim, hidden]; qkv_bias: of its rows.
    qk_norm: [heads + kv_heads, head_dim] norm weight of each query and key head.
    o: [hidden, heads * head_dim]; o_bias: [hidden].
    eps: of all norms; scale: of the scores before the softmax.
    """

    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    qk_norm: torch.Tensor | None
    o: torch.Tensor
    o_bias: torch.Tensor | None
    output_norm: torch.Tensor
    eps: float
    scale: float
