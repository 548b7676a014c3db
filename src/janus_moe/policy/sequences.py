"""What a batcher keeps of a request, and what it decides for one step.

This module does not decide anything (see `batching`) and knows no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from janus_moe.policy.paging import BlockTable, slot_mapping


@dataclass(slots=True, eq=False)
class Sequence:
    """One request on its attention instance.

    token_ids: prompt, then everything produced so far. Only the batcher appends.
    prompt_len: how many of them are the prompt.
    needs_prompt_logits: nothing may come from the prefix cache, because the logits of every
        prompt token are wanted. The owner clears it once it has them.
    num_computed: leading tokens whose KV is in the cache.
    num_cached_tokens: of these, how many the prefix cache supplied at the first admission.
    """

    request_id: str
    token_ids: list[int]
    prompt_len: int
    needs_prompt_logits: bool = False
    num_computed: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    table: BlockTable = field(default_factory=BlockTable)

    @property
    def blocks(self) -> list[int]:
        """KV blocks in position order; read it anew for every step."""
        return self.table.blocks


class ScheduledSequence(NamedTuple):
    """Positions start .. start + num_tokens of `sequence` are computed in this step.

    samples: they end with its last token, so a new token is sampled.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool

    @property
    def token_ids(self) -> list[int]:
        return self.sequence.token_ids[self.start : self.start + self.num_tokens]


class StepPlan(NamedTuple):
    """One step: single tokens of running requests first, then prefill; by arrival within each.

    num_decodes: leading entries of `scheduled` that compute exactly one token and sample.
    num_tokens: over all entries.
    preempted: request ids that lost their blocks to make this step possible.
    """

    scheduled: tuple[ScheduledSequence, ...]
    num_decodes: int
    num_tokens: int
    preempted: tuple[str, ...]

    def num_pairs(self) -> int:
        """Pairs of a token and one that it attends to, over all entries."""
        return sum(n * (start + n) for _, start, n, _ in self.scheduled)

    def micro_batches(self, threshold: int) -> tuple[StepPlan, ...]:
        """Itself, or two parts of about as many tokens where it has `threshold` or more (0: never).

        Sequences stay whole, because later tokens of one attend to earlier ones. Parts are in
        order, so their rows one after another are those of the whole.
        """
        if not threshold or self.num_tokens < threshold or len(self.scheduled) < 2:
            return (self,)
        ends = np.cumsum([entry.num_tokens for entry in self.scheduled])
        first = 1 + int(np.argmin(np.abs(2 * ends[:-1] - self.num_tokens)))
        tokens, decodes = int(ends[first - 1]), self.num_decodes
        return (
            StepPlan(self.scheduled[:first], min(first, decodes), tokens, self.preempted),
            StepPlan(self.scheduled[first:], max(0, decodes - first), self.num_tokens - tokens, ()),
        )

    def slot_mapping(self, block_size: int) -> NDArray[np.int64]:
        """[num_tokens] int64, where in the cache each token's KV goes, in the plan's order."""
        decodes: list[int] = []
        for sequence, start, _, _ in self.scheduled[: self.num_decodes]:
            block = sequence.table.blocks[start // block_size]
            decodes.append(block * block_size + start % block_size)
        parts = [np.asarray(decodes, np.int64)]
        for sequence, start, num_tokens, _ in self.scheduled[self.num_decodes :]:
            parts.append(slot_mapping(sequence.blocks, start, num_tokens, block_size))
        return np.concatenate(parts)
