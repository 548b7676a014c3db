"""Runs a checkpoint through both blocks in one process, sequence by sequence or packed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tests.model import monolithic
from torch import Tensor

from janus_moe.kernels.paged_attention import AttentionBatch
from janus_moe.model.attention_block import AttentionModel, KvCache, StepInput
from janus_moe.model.checkpoint import Checkpoint, validate
from janus_moe.model.config import read_spec
from janus_moe.model.expert_block import ExpertModel
from janus_moe.spec import ModelSpec

BLOCK_SIZE = 4
NUM_BLOCKS = 64
CPU = torch.device("cpu")


class Runner:
    """A loaded checkpoint with a paged cache whose blocks are handed out in random order.

    num_instances: expert instances the logical experts are dealt to, round robin.
    spec: of the checkpoint; None means as its config says.
    """

    def __init__(
        self,
        folder: Path,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        num_instances: int = 1,
        spec: ModelSpec | None = None,
    ) -> None:
        self.spec = spec or read_spec(folder, dtype)
        checkpoint = Checkpoint.open(folder)
        validate(checkpoint, self.spec)
        self.model = AttentionModel.load(self.spec, checkpoint, CPU)
        self.experts = [
            ExpertModel.load(self.spec, checkpoint, self._slots(instance, num_instances), CPU)
            for instance in range(num_instances)
        ]
        self.cache = KvCache.allocate(self.spec, NUM_BLOCKS, BLOCK_SIZE, CPU)
        self._free = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(1)).tolist()
        self._blocks: dict[str, list[int]] = {}
        self._lengths: dict[str, int] = {}

    def step(self, chunks: dict[str, Sequence[int]]) -> dict[str, Tensor]:
        """Appends tokens to some sequences; logits of each of those tokens, [tokens, vocab]."""
        hidden = monolithic.forward(self.model, self.experts, self._input(chunks), self.cache)
        logits = torch.split(self.model.logits(hidden), [len(c) for c in chunks.values()])
        return dict(zip(chunks, logits, strict=True))

    def _slots(self, instance: int, num_instances: int) -> list[list[int]]:
        experts = range(instance, self.spec.moe.num_experts, num_instances)
        return [list(experts) for _ in self.spec.moe_layer_ids]

    def _input(self, chunks: dict[str, Sequence[int]]) -> StepInput:
        positions: list[int] = []
        slots: list[int] = []
        starts, contexts, tables = [0], [], []
        for name, tokens in chunks.items():
            begin = self._lengths.get(name, 0)
            end = self._lengths[name] = begin + len(tokens)
            blocks = self._blocks.setdefault(name, [])
            while len(blocks) * BLOCK_SIZE < end:
                blocks.append(self._free.pop())
            positions += range(begin, end)
            slots += [
                blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(begin, end)
            ]
            starts.append(starts[-1] + len(tokens))
            contexts.append(end)
            tables.append(blocks)
        widest = max(map(len, tables))
        padded = [table + [0] * (widest - len(table)) for table in tables]
        batch = AttentionBatch(
            query_starts=torch.tensor(starts, dtype=torch.int32),
            context_lens=torch.tensor(contexts, dtype=torch.int32),
            block_tables=torch.tensor(padded, dtype=torch.int32),
        )
        ids = [token for tokens in chunks.values() for token in tokens]
        return StepInput(torch.tensor(ids), torch.tensor(positions), torch.tensor(slots), batch)


def reference_logits(folder: Path, tokens: Sequence[int], dtype: torch.dtype) -> Tensor:
    """transformers' logits of every token, [tokens, vocab] float32."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
    )
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([list(tokens)])).logits[0].float()
    return logits
