"""Which tokens one attention instance computes in its next step.

Continuous batching with chunked prefill. First come, first served, without exception: running
requests go before waiting ones, and when KV blocks run out the latest arrival gives up its blocks
and goes back to the front of the queue, to be computed again later (its produced tokens are
kept). So the earliest request always advances, and every request is eventually the earliest.

This module does not know of tensors, sampling or when a request is finished.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import chain

from janus_moe.errors import RequestError, ServiceError
from janus_moe.policy.paging import NO_PREFIX, BlockManager
from janus_moe.policy.sequences import ScheduledSequence, Sequence, StepPlan

__all__ = ["Batcher", "ScheduledSequence", "Sequence", "StepPlan"]


class Batcher:
    """The requests of one attention instance and their turns.

    The worker calls `plan`, computes, calls `commit`, and `finish` for what is done. `add` may
    come at any time; `finish` and `abort` release blocks, so they must not come while a step that
    uses these is computed. `commit` skips what was released after `plan`.
    """

    def __init__(self, blocks: BlockManager, max_num_seqs: int, max_num_batched_tokens: int):
        self._blocks = blocks
        self._max_num_seqs = max_num_seqs
        self._max_num_tokens = max_num_batched_tokens
        # Both in order of arrival, and everything running arrived before everything waiting.
        self._running: OrderedDict[str, Sequence] = OrderedDict()
        self._waiting: OrderedDict[str, Sequence] = OrderedDict()
        self._num_preemptions = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def num_preemptions(self) -> int:
        """Since the start."""
        return self._num_preemptions

    @property
    def sequences(self) -> Iterator[Sequence]:
        """All requests in order of arrival."""
        return chain(self._running.values(), self._waiting.values())

    def fits(self, num_tokens: int) -> bool:
        """Whether a request that computes `num_tokens` in total can ever run here."""
        return self._blocks.blocks_needed(num_tokens) <= self._blocks.num_blocks

    def add(self, sequence: Sequence) -> None:
        """Queue a request; refuse before, with `fits`, what can grow beyond the cache."""
        request_id = sequence.request_id
        if request_id in self._running or request_id in self._waiting:
            raise RequestError(f"request {request_id} is already being served")
        if not sequence.token_ids:
            raise RequestError("a prompt needs at least one token", param="prompt")
        if not self.fits(len(sequence.token_ids)):
            raise RequestError(
                f"{len(sequence.token_ids)} tokens do not fit in the KV cache of "
                f"{self._blocks.num_blocks * self._blocks.block_size} tokens; shorten the prompt "
                "or raise --kv-cache-memory-bytes",
                param="prompt",
            )
        self._waiting[request_id] = sequence

    def finish(self, request_id: str) -> None:
        """Forget a request and release its blocks; unknown ids are ignored."""
        sequence = self._running.pop(request_id, None)
        if sequence is not None:
            self._blocks.free(sequence.table)
        else:
            self._waiting.pop(request_id, None)

    def abort(self, request_id: str) -> None:
        """The same for a request that its client has given up."""
        self.finish(request_id)

    def plan(self) -> StepPlan:
        """Decide the next step and reserve its blocks. Empty only when there is no work.

        Planned again before it is committed, the same step comes out.
        """
        decodes: list[ScheduledSequence] = []
        prefills: list[ScheduledSequence] = []
        preempted: list[str] = []
        left = self._plan_running(decodes, prefills, preempted)
        if not preempted:  # else the first in the queue has just been found not to fit
            left = self._plan_waiting(decodes, prefills, left)
        return StepPlan(
            scheduled=(*decodes, *prefills),
            num_decodes=len(decodes),
            num_tokens=self._max_num_tokens - left,
            preempted=tuple(preempted),
        )

    def commit(self, plan: StepPlan, new_tokens: Mapping[str, int]) -> None:
        """The step was computed. new_tokens: request id -> token, for all entries that sample."""
        for sequence, start, num_tokens, samples in plan.scheduled:
            if self._running.get(sequence.request_id) is not sequence:
                continue
            sequence.num_computed = start + num_tokens
            self._blocks.commit(sequence.table, sequence.token_ids, sequence.num_computed)
            if samples:
                sequence.token_ids.append(new_tokens[sequence.request_id])

    def check(self) -> None:
        """Raise AssertionError unless blocks and requests are consistent."""
        self._blocks.check(sequence.table for sequence in self._running.values())
        assert not any(s.blocks or s.num_computed for s in self._waiting.values())

    def _plan_running(
        self,
        decodes: list[ScheduledSequence],
        prefills: list[ScheduledSequence],
        preempted: list[str],
    ) -> int:
        """Plan running requests by arrival; returns the tokens left in the budget."""
        running = list(self._running.values())
        pending = [len(s.token_ids) - s.num_computed for s in running]
        decode_left = min(pending.count(1), self._max_num_tokens)
        prefill_left = self._max_num_tokens - decode_left
        for sequence, num_pending in zip(running, pending, strict=True):
            if preempted and sequence.request_id not in self._running:
                break  # and so are all later ones
            num_tokens = min(num_pending, decode_left if num_pending == 1 else prefill_left)
            start = sequence.num_computed
            if num_tokens == 0 or not self._make_room(sequence, start + num_tokens, preempted):
                continue
            if num_pending == 1:
                decode_left -= 1
                decodes.append(ScheduledSequence(sequence, start, 1, True))
            else:
                prefill_left -= num_tokens
                samples = num_tokens == num_pending
                prefills.append(ScheduledSequence(sequence, start, num_tokens, samples))
        return decode_left + prefill_left

    def _plan_waiting(
        self, decodes: list[ScheduledSequence], prefills: list[ScheduledSequence], left: int
    ) -> int:
        """Admit waiting requests in order while there is room; returns the tokens left.

        A request gets the blocks of all its present tokens at once, however many steps it takes
        to compute them, and every request already running keeps one block in reserve: what is
        admitted now is not taken back a step later.
        """
        while self._waiting and left and len(self._running) < self._max_num_seqs:
            reserve = len(self._running)
            if self._blocks.num_available <= reserve:
                break
            sequence = next(iter(self._waiting.values()))
            total = len(sequence.token_ids)
            prefix = NO_PREFIX
            if not sequence.needs_prompt_logits:
                prefix = self._blocks.lookup_prefix(sequence.token_ids)
            if self._blocks.num_taken(total, prefix) + reserve > self._blocks.num_available:
                break
            self._waiting.popitem(last=False)
            self._running[sequence.request_id] = sequence
            self._blocks.allocate(sequence.table, total, prefix)
            start = sequence.num_computed = prefix.num_tokens
            if sequence.num_preemptions == 0:
                sequence.num_cached_tokens = min(start, sequence.prompt_len)
            num_tokens = min(left, total - start)
            left -= num_tokens
            samples = start + num_tokens == total
            planned = decodes if samples and num_tokens == 1 else prefills
            planned.append(ScheduledSequence(sequence, start, num_tokens, samples))
        return left

    def _make_room(self, sequence: Sequence, num_tokens: int, preempted: list[str]) -> bool:
        """Blocks for `num_tokens` in total, taken from later arrivals; False: it was the latest."""
        if num_tokens <= len(sequence.table.blocks) * self._blocks.block_size:
            return True
        while not self._blocks.allocate(sequence.table, num_tokens):
            if len(self._running) == 1:
                raise ServiceError(
                    f"request {sequence.request_id} has outgrown the KV cache of "
                    f"{self._blocks.num_blocks * self._blocks.block_size} tokens; it should have "
                    "been refused at admission"
                )
            request_id, latest = self._running.popitem()
            self._blocks.free(latest.table)
            latest.num_computed = 0
            latest.num_preemptions += 1
            self._num_preemptions += 1
            self._waiting[request_id] = latest
            self._waiting.move_to_end(request_id, last=False)
            preempted.append(request_id)
            if latest is sequence:
                return False
        return True
