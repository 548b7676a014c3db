"""One attention instance: it batches requests, lets a step be computed, and reports it.

It owns the requests that it serves and nothing else that matters: the engine keeps prompt and
produced tokens. It does not know how a step is computed, nor how messages or activations travel.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import torch

from janus_moe.attention.exchange_log import ExchangeLog
from janus_moe.attention.request import ActiveRequest
from janus_moe.attention.runner import AttentionRunner
from janus_moe.attention.step_input import StepLimits
from janus_moe.attention.step_output import StepOutput, read_hidden
from janus_moe.messages import AddRequest, NewTokens, StepDone
from janus_moe.policy.batching import Batcher, StepPlan
from janus_moe.policy.paging import BlockManager
from janus_moe.spec import InstanceId
from janus_moe.transport import AttentionPort


class AttentionInstance:
    """Continuous batching of the requests of one attention instance, in lockstep with the others.

    It takes part in steps from the first `connect` on. Not thread safe: one thread calls `connect`,
    `add`, `abort`, `use_epoch` and `step`.

    instance_id: its name in messages.
    runner: computes steps of the blocks that `blocks` hands out.
    blocks: which block of the KV cache holds what.
    limits: how large a step may be.
    """

    def __init__(
        self,
        instance_id: InstanceId,
        runner: AttentionRunner,
        blocks: BlockManager,
        limits: StepLimits,
    ) -> None:
        self.id = instance_id
        self._runner = runner
        self._spans = runner.spans
        self._blocks = blocks
        self._batcher = Batcher(blocks, limits.max_num_seqs, limits.max_num_batched_tokens)
        self._limits = limits
        self._requests: dict[str, ActiveRequest] = {}
        self._experts: Sequence[InstanceId] = ()
        self._ports: Sequence[AttentionPort] = ()
        self._micro_batch_threshold = 0
        self._epoch = 0  # of the steps to come, or an earlier one

    @property
    def has_work(self) -> bool:
        return self._batcher.has_work

    def connect(
        self, experts: Sequence[InstanceId], ports: Sequence[AttentionPort], epoch: int = 0
    ) -> None:
        """Computes its steps with these expert instances from now on.

        A step that the exchange before has raised out of is not lost: it is computed again.

        experts: the expert instances of the exchanges by rank.
        ports: an exchange for each micro-batch; every step is announced on all of them.
        epoch: the placement that their first steps use.
        """
        self._experts = experts
        self._ports = ports
        self._epoch = epoch
        self._micro_batch_threshold = self._limits.micro_batch_threshold if len(ports) > 1 else 0

    def add(self, message: AddRequest) -> None:
        """Takes a request; the engine has checked that it fits."""
        self._forget(message.request_id)  # an earlier admission of it
        request = ActiveRequest.admit(message, self._limits.max_model_len, time.perf_counter())
        self._requests[message.request_id] = request
        self._batcher.add(request.sequence)

    def abort(self, request_id: str, admission: int) -> None:
        """Forgets one admission of a request and frees its cache; ignored when it has ended."""
        request = self._requests.get(request_id)
        if request is not None and request.message.admission == admission:
            self._forget(request_id)

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

    def leave(self) -> None:
        """Takes no part in later steps of its exchanges; the requests stay."""
        for port in self._ports:
            port.leave()

    def follow(self) -> bool:
        """Takes part, without tokens, in a step that a peer has begun; False when there is none."""
        if not self._ports[0].step_pending():
            return False
        self._announce(())
        return True

    def step(self) -> StepDone:
        """Computes one step for all its scheduled sequences; joins the pools' lockstep.

        An error of an exchange leaves nothing but the plan of the step, and the same is planned
        again unless requests come or go.
        """
        start = time.perf_counter()
        plan = self._batcher.plan()
        log = ExchangeLog()
        with torch.inference_mode():
            output = self._compute(plan, log)
        outputs = self._commit(plan, output, start)
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

    def _forget(self, request_id: str) -> None:
        if self._requests.pop(request_id, None) is not None:
            self._batcher.abort(request_id)

    def _compute(self, plan: StepPlan, log: ExchangeLog) -> StepOutput:
        """Changes nothing but the cache rows of the step's positions."""
        spans, runner = self._spans, self._runner
        parts = plan.micro_batches(self._micro_batch_threshold)
        inputs = runner.load(parts)
        spans.mark("between steps")
        spans.step = self._announce([part.num_tokens for part in parts])
        spans.tokens, spans.pairs = plan.num_tokens, plan.num_pairs
        spans.mark("announce")
        hidden = runner.run(inputs, self._ports, log)
        requests = self._requests
        scheduled = [(entry, requests[entry.sequence.request_id]) for entry in plan.scheduled]
        output = read_hidden(hidden, scheduled, runner.logits)
        log.read()  # sampling has waited for the device already
        return output

    def _announce(self, num_tokens: Sequence[int]) -> int:
        """Begins a step with micro-batches of so many tokens; its number."""
        idle = (0,) * (len(self._ports) - len(num_tokens))
        steps = [
            port.begin_step(tokens)
            for port, tokens in zip(self._ports, (*num_tokens, *idle), strict=True)
        ]
        return steps[0]

    def _commit(self, plan: StepPlan, output: StepOutput, start: float) -> tuple[NewTokens, ...]:
        """Keeps what a step has produced, and retires the requests that have ended.

        start: clock reading at the beginning of the step, seconds.
        """
        for entry in plan.scheduled:
            request = self._requests[entry.sequence.request_id]
            request.started_at = request.started_at or start
        for request, entries in output.prompt_entries:
            request.add_prompt_entries(entries)
        next_tokens = output.next_tokens
        self._batcher.commit(
            plan, {one.request.message.request_id: one.token_id or 0 for one in next_tokens}
        )
        outputs = tuple(one.request.report(one.token_id, one.logprobs) for one in next_tokens)
        for report in outputs:
            if report.finish_reason is not None:
                self._batcher.finish(report.request_id)
                del self._requests[report.request_id]
        return outputs
