"""One attention instance: batch, compute, sample, report - one step at a time.

It owns the KV cache of its requests and nothing else that matters: the engine keeps prompt and
produced tokens. It does not know how messages or activations travel.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from janus_moe.attention.forward import ExchangeLog, Part, forward
from janus_moe.attention.logprobs import prompt_logprobs, token_logprobs
from janus_moe.attention.request import ActiveRequest
from janus_moe.attention.sampler import choose_tokens
from janus_moe.attention.step_input import build_step_input
from janus_moe.messages import AddRequest, NewTokens, StepDone, TokenLogprob
from janus_moe.model.attention_block import AttentionModel, KvCache
from janus_moe.policy.batching import Batcher, ScheduledSequence, StepPlan
from janus_moe.policy.paging import BlockManager
from janus_moe.spec import InstanceId
from janus_moe.tracing import SpanLog
from janus_moe.transport import AttentionPort


@dataclass(frozen=True, slots=True)
class StepLimits:
    """max_num_seqs, max_num_batched_tokens: per step; max_model_len: prompt and output together.
    micro_batch_threshold: tokens of a step from which it is computed in two parts, 0: never."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    micro_batch_threshold: int = 0


class AttentionInstance:
    """Continuous batching of the requests of one attention instance, in lockstep with the others.

    instance_id: its name in messages.
    experts: the expert instances of its exchanges by rank.
    ports: an exchange for each micro-batch; every step is announced on all of them.

    Not thread safe: one thread calls `add`, `abort` and `step`.
    """

    def __init__(
        self,
        instance_id: InstanceId,
        experts: Sequence[InstanceId],
        model: AttentionModel,
        cache: KvCache,
        blocks: BlockManager,
        limits: StepLimits,
        ports: Sequence[AttentionPort],
        spans: SpanLog | None = None,
    ) -> None:
        self.id = instance_id
        self._experts = experts
        self._ports = ports
        self._spans = spans or SpanLog()
        self._model = model
        self._cache = cache
        self._blocks = blocks
        self._batcher = Batcher(blocks, limits.max_num_seqs, limits.max_num_batched_tokens)
        self._max_model_len = limits.max_model_len
        self._micro_batch_threshold = limits.micro_batch_threshold if len(ports) > 1 else 0
        self._requests: dict[str, ActiveRequest] = {}
        self._epoch = 0  # of the steps to come, or an earlier one

    @property
    def has_work(self) -> bool:
        return self._batcher.has_work

    def add(self, message: AddRequest) -> None:
        """Takes a request; the engine has checked that it fits."""
        request = ActiveRequest.admit(message, self._max_model_len, time.perf_counter())
        self._requests[message.request_id] = request
        self._batcher.add(request.sequence)

    def abort(self, request_id: str) -> None:
        """Forgets a request and frees its cache; unknown ids (already finished) are ignored."""
        if self._requests.pop(request_id, None) is not None:
            self._batcher.abort(request_id)

    def use_epoch(self, epoch: int) -> None:
        """Announces steps with this placement from now on."""
        for port in self._ports:
            port.use_epoch(epoch)
        self._epoch = max(self._epoch, epoch)

    def wait(self) -> None:
        """Blocks until a peer begins a step, or until woken."""
        self._ports[0].wait(None)

    def wake(self) -> None:
        """Ends the current wait, or the next one; any thread may call."""
        self._ports[0].wake()

    def follow(self) -> bool:
        """Takes part, without tokens, in a step that a peer has begun; False when there is none."""
        if not self._ports[0].step_pending():
            return False
        self._announce(())
        return True

    def step(self) -> StepDone:
        """Computes one step for all its scheduled sequences; joins the pools' lockstep."""
        start = time.perf_counter()
        plan = self._batcher.plan()
        for scheduled in plan.scheduled:
            request = self._requests[scheduled.sequence.request_id]
            request.started_at = request.started_at or start
        log = ExchangeLog(spans=self._spans)
        with torch.inference_mode():
            parts = plan.micro_batches(self._micro_batch_threshold)
            device = self._model.embedding.device
            inputs = [build_step_input(part, self._blocks.block_size, device) for part in parts]
            self._spans.mark("between steps")
            self._spans.step = self._announce([part.num_tokens for part in parts])
            self._spans.tokens = plan.num_tokens
            self._spans.mark("announce")
            ready = [Part(step, port) for step, port in zip(inputs, self._ports, strict=False)]
            hidden = forward(self._model, self._cache, ready, log)
            outputs = self._produce(plan, hidden)
            log.read()  # sampling has waited for the device already
            self._spans.mark("sample")
        self._epoch = log.epoch
        return msgspec.structs.replace(
            self.report(),
            outputs=outputs,
            step_seconds=time.perf_counter() - start,
            dispatch_seconds=log.dispatch_seconds,
            combine_seconds=log.combine_seconds,
            scheduler_seconds=log.scheduler_seconds,
            activity=log.activity(self._experts),
            exchange_plan=log.plan,
            notices=tuple(log.notices),
        )

    def report(self) -> StepDone:
        """The load of this instance, without a step."""
        return StepDone(
            instance=self.id,
            outputs=(),
            num_running=self._batcher.num_running,
            num_waiting=self._batcher.num_waiting,
            kv_usage=self._blocks.usage,
            num_preemptions=self._batcher.num_preemptions,
            epoch=self._epoch,
        )

    def _announce(self, num_tokens: Sequence[int]) -> int:
        """Begins a step with micro-batches of so many tokens; its number."""
        idle = (0,) * (len(self._ports) - len(num_tokens))
        steps = [
            port.begin_step(tokens)
            for port, tokens in zip(self._ports, (*num_tokens, *idle), strict=True)
        ]
        return steps[0]

    def _produce(self, plan: StepPlan, hidden: Tensor) -> tuple[NewTokens, ...]:
        """Scores prompts, samples where a sequence is complete, and retires what has ended."""
        self._score_prompts(plan, hidden)
        last_rows, complete = [], []
        row = 0
        for scheduled in plan.scheduled:
            row += scheduled.num_tokens
            if scheduled.samples:
                last_rows.append(row - 1)
                complete.append(self._requests[scheduled.sequence.request_id])
        producing = [request for request in complete if not request.scores_only]
        rows = [r for r, q in zip(last_rows, complete, strict=True) if not q.scores_only]
        chosen, logprobs = self._sample(hidden[rows], producing) if producing else ([], [])
        new_tokens = {request.message.request_id: 0 for request in complete}
        for request, token in zip(producing, chosen, strict=True):
            new_tokens[request.message.request_id] = token
        self._batcher.commit(plan, new_tokens)
        outputs = [
            request.report((token,), entry)
            for request, token, entry in zip(producing, chosen, logprobs, strict=True)
        ]
        outputs += [request.report((), None) for request in complete if request.scores_only]
        for output in outputs:
            if output.finish_reason is not None:
                self._batcher.finish(output.request_id)
                del self._requests[output.request_id]
        return tuple(outputs)

    def _sample(
        self, hidden: Tensor, requests: list[ActiveRequest]
    ) -> tuple[list[int], list[tuple[TokenLogprob, ...] | None]]:
        """One token per request, and its log-probabilities where the request wants them."""
        logits = self._model.logits(hidden)
        chosen = choose_tokens(logits, [request.sampling_row() for request in requests])
        logprobs: list[tuple[TokenLogprob, ...] | None] = [None] * len(requests)
        for index, request in enumerate(requests):
            num_top = request.message.sampling.logprobs
            if num_top is not None:
                row = logits[index : index + 1]
                logprobs[index] = tuple(token_logprobs(row, [chosen[index]], num_top))
        return chosen, logprobs

    def _score_prompts(self, plan: StepPlan, hidden: Tensor) -> None:
        """Log-probabilities of the prompt tokens that follow the positions of this step."""
        row = 0
        for scheduled in plan.scheduled:
            request = self._requests[scheduled.sequence.request_id]
            if request.wants_prompt_logprobs:
                self._score_prompt(request, scheduled, hidden[row : row + scheduled.num_tokens])
            row += scheduled.num_tokens

    def _score_prompt(
        self, request: ActiveRequest, scheduled: ScheduledSequence, hidden: Tensor
    ) -> None:
        sequence = request.sequence
        scored = len(request.prompt_entries) - 1  # positions whose successor has its entry
        first = max(scheduled.start, scored)  # a preempted prompt is computed again, not scored
        last = min(scheduled.start + scheduled.num_tokens, sequence.prompt_len - 1)
        if first >= last:
            return
        request.prompt_entries += prompt_logprobs(
            hidden[first - scheduled.start : last - scheduled.start],
            sequence.token_ids[first + 1 : last + 1],
            request.message.sampling.prompt_logprobs or 0,
            self._model.logits,
        )
        sequence.needs_prompt_logits = request.wants_prompt_logprobs
