"""Paged memory of past tokens, and what one step says about where tokens lie in it.

Kinds of attention say what a token keeps; this module knows none of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from janus_moe.kernels.paged_attention import AttentionBatch
from janus_moe.spec import ModelSpec
from janus_moe.torch_dtypes import TORCH_DTYPES


@dataclass(frozen=True, slots=True)
class KvCache:
    """The caches of all layers.

    layers: [layers][tensors of the kind's `cache_shapes`] [blocks, block_size, heads, width],
        rows of past tokens.
    """

    layers: tuple[tuple[Tensor, ...], ...]

    @classmethod
    def allocate(
        cls, spec: ModelSpec, num_blocks: int, block_size: int, device: torch.device | str
    ) -> KvCache:
        """Room for `num_blocks` blocks of `block_size` tokens in every layer, all zero."""
        dtype = TORCH_DTYPES[spec.dtype]

        def zeros(heads: int, width: int) -> Tensor:
            return torch.zeros(num_blocks, block_size, heads, width, dtype=dtype, device=device)

        return cls(
            tuple(
                tuple(zeros(*shape) for shape in spec.attention_of(layer).cache_shapes)
                for layer in range(spec.num_layers)
            )
        )


@dataclass(slots=True)
class StepInput:
    """The tokens of one step of one attention instance.

    token_ids: [tokens] int64.
    positions: [tokens] int64, place in its sequence.
    slot_mapping: [tokens] int64, block * block_size + offset where its cache row goes.
    batch: which tokens belong to which sequence, and the sequences' blocks.
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    batch: AttentionBatch
    _rotations: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def rotation(self, table: Tensor) -> Tensor:
        """Rows of a table at `positions`, the same in every layer that rotates by it.

        table: [positions, rotary_dim / 2] complex64, which outlives the step.

        Returns [tokens, 1, rotary_dim / 2] complex64, gathered at first use; a captured graph
        needs a StepInput of its own.
        """
        found = self._rotations.get(id(table))
        if found is None:
            found = table.index_select(0, self.positions).unsqueeze(1)
            self._rotations[id(table)] = found
        return found
