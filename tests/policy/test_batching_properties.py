"""Continuous batching under random arrivals, aborts and tiny caches.

The KV cache is played by a list: computing a position stores the whole prefix it depends on, and
before a step uses a cached position its entry must be that prefix. A paging mistake of any kind
shows as a wrong entry.
"""

from __future__ import annotations

import zlib

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from janus_moe.policy.batching import Batcher, Sequence
from janus_moe.policy.paging import BlockManager, slot_mapping


def next_token(token_ids: list[int]) -> int:
    """Stands for the model; few tokens, so that prefixes repeat."""
    return zlib.crc32(bytes(token_ids)) % 3


def generate(prompt: list[int], num_tokens: int) -> list[int]:
    token_ids = list(prompt)
    for _ in range(num_tokens):
        token_ids.append(next_token(token_ids))
    return token_ids


class BatcherMachine(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(1, 12),
        block_size=st.integers(1, 4),
        max_num_seqs=st.integers(1, 5),
        max_num_tokens=st.integers(1, 12),
        caching=st.booleans(),
    )
    def start(
        self,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_num_tokens: int,
        caching: bool,
    ) -> None:
        self.block_size = block_size
        self.max_num_seqs, self.max_num_tokens = max_num_seqs, max_num_tokens
        blocks = BlockManager(num_blocks, block_size, enable_prefix_caching=caching)
        self.batch = Batcher(blocks, max_num_seqs, max_num_tokens)
        self.blocks = blocks
        self.kv: list[list[int] | None] = [None] * (num_blocks * block_size)
        self.expected: dict[str, list[int]] = {}
        self.num_added = 0

    @rule(
        prompt=st.lists(st.integers(0, 2), min_size=1, max_size=12),
        num_tokens=st.integers(1, 10),
        needs_prompt_logits=st.booleans(),
    )
    def add(self, prompt: list[int], num_tokens: int, needs_prompt_logits: bool) -> None:
        if not self.batch.fits(len(prompt) + num_tokens - 1):
            return
        name = f"r{self.num_added}"
        self.num_added += 1
        self.expected[name] = generate(prompt, num_tokens)
        self.batch.add(Sequence(name, list(prompt), len(prompt), needs_prompt_logits))

    @precondition(lambda self: self.expected)
    @rule(index=st.integers(0, 100))
    def abort(self, index: int) -> None:
        name = sorted(self.expected)[index % len(self.expected)]
        self.batch.abort(name)
        del self.expected[name]

    @rule()
    def step(self) -> None:
        before = [s.request_id for s in self.batch.sequences]
        plan = self.batch.plan()
        tables = [list(s.blocks) for s in self.batch.sequences]
        num_preemptions = self.batch.num_preemptions
        assert self.batch.plan()._replace(preempted=plan.preempted) == plan, "planned again"
        assert [list(s.blocks) for s in self.batch.sequences] == tables
        assert self.batch.num_preemptions == num_preemptions
        assert [s.request_id for s in self.batch.sequences] == before, "order of arrival is kept"
        assert len(plan.scheduled) <= self.batch.num_running <= self.max_num_seqs
        assert bool(plan.scheduled) == self.batch.has_work, "there is always progress"
        assert sum(s.num_tokens for s in plan.scheduled) == plan.num_tokens <= self.max_num_tokens
        slots = plan.slot_mapping(self.block_size).tolist()
        assert len(set(slots)) == plan.num_tokens
        new_tokens = {}
        for index, (sequence, start, num_tokens, samples) in enumerate(plan.scheduled):
            assert start == sequence.num_computed and num_tokens > 0, "each token once, in order"
            end, token_ids = start + num_tokens, sequence.token_ids
            assert samples == (end == len(token_ids))
            assert (index < plan.num_decodes) == (num_tokens == 1 and samples)
            if sequence.needs_prompt_logits:
                assert sequence.num_cached_tokens == 0
            for position in range(start, end):
                self.kv[slots.pop(0)] = token_ids[: position + 1]
            for position, slot in enumerate(slot_mapping(sequence.blocks, 0, end, self.block_size)):
                assert self.kv[slot] == token_ids[: position + 1], "the cache holds this prefix"
            if samples:
                new_tokens[sequence.request_id] = next_token(token_ids)
        self.batch.commit(plan, new_tokens)
        for sequence in list(self.batch.sequences):
            goal = self.expected[sequence.request_id]
            assert sequence.token_ids == goal[: len(sequence.token_ids)], "whatever the cache size"
            if sequence.token_ids == goal:
                self.batch.finish(sequence.request_id)
                del self.expected[sequence.request_id]
        self.batch.check()

    def teardown(self) -> None:
        if not hasattr(self, "batch"):
            return
        limit = 20 + sum(len(goal) for goal in self.expected.values()) ** 2
        while self.batch.has_work:
            limit -= 1
            assert limit > 0, "requests do not finish"
            self.step()
        assert not self.expected and self.blocks.usage == 0.0


BatcherMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestBatcher = BatcherMachine.TestCase
