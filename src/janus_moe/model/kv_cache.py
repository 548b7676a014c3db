"""Paged memory of past keys and values, and what one step says about where tokens lie in it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from janus_moe.kernels.paged_attention import AttentionBatch
from janus_moe.model.loading import TORCH_DTYPES
from janus_moe.spec import GqaSpec, ModelSpec


@dataclass(frozen=True, slots=True)
class KvCache:
    """Per layer, what attention reads as keys and as values.

    GQA: keys and values [blocks, block_size, kv_heads, head_dim].
    MLA: one latent cache [blocks, block_size, 1, kv_lora_rank + rope_head_dim] that is both;
    values are its first kv_lora_rank columns.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @classmethod
    def allocate(
        cls, spec: ModelSpec, num_blocks: int, block_size: int, device: torch.device | str
    ) -> KvCache:
        attention = spec.attention

        def layers(heads: int, width: int) -> tuple[Tensor, ...]:
            shape = (num_blocks, block_size, heads, width)
            dtype = TORCH_DTYPES[spec.dtype]
            return tuple(
                torch.zeros(shape, dtype=dtype, device=device) for _ in range(spec.num_layers)
            )

        if isinstance(attention, GqaSpec):
            width = attention.head_dim
            return cls(layers(attention.num_kv_heads, width), layers(attention.num_kv_heads, width))
        latents = layers(1, attention.cache_row)
        return cls(latents, latents)


@dataclass(slots=True)
class StepInput:
    """The tokens of one step of one attention instance.

    token_ids: [tokens] int64. positions: [tokens] int64, place in its sequence.
    slot_mapping: [tokens] int64, block * block_size + offset where its cache row goes.
    batch: which tokens belong to which sequence, and the sequences' blocks.
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    batch: AttentionBatch
    _rotation: Tensor | None = field(default=None, init=False, repr=False)

    def rotation(self, table: Tensor) -> Tensor:
        """[tokens, 1, rotary_dim / 2]: rows of the table at `positions`, the same in every layer.

        Gathered at first use; a captured graph needs a StepInput of its own.
        """
        if self._rotation is None:
            self._rotation = table.index_select(0, self.positions).unsqueeze(1)
        return self._rotation
