"""The ends of an exchange whose instances are processes: lockstep by broadcast, rows by programs.

An attention instance runs the dispatch program of a plan in `dispatch` and the reply program in
`combine`; an expert instance in `accept` and `reply`. Receives for the next layer pass are posted
as soon as their buffers are free, while the other pool computes. How peers are connected is not
known here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from janus_moe.errors import ConfigError, ExchangeTimeout
from janus_moe.spec import ExchangePlanName
from janus_moe.transport.base import Combined, ReplyMetadata, Ticket, Work
from janus_moe.transport.lockstep.batches import BatchSequence
from janus_moe.transport.lockstep.control_block import step_and_layer
from janus_moe.transport.lockstep.reply_metadata import check_routing
from janus_moe.transport.lockstep.steps import StepSequence
from janus_moe.transport.network.arrivals import MessageArrivals
from janus_moe.transport.network.endpoint import Endpoint
from janus_moe.transport.network.message_buffers import pack_metadata, unpack_metadata
from janus_moe.transport.network.plan_selection import PlanSource, plan_in
from janus_moe.transport.network.programs import ProgramCache, Programs, StepClock


class NetworkAttention:
    """An `AttentionPort` over messages.

    source: of the plans; that of attention rank 0 counts.
    result: [max tokens, hidden] of the partial sums' dtype, a buffer for the sums.
    dtype: of the hidden states.
    """

    def __init__(
        self,
        steps: StepSequence,
        endpoint: Endpoint,
        source: PlanSource,
        result: Tensor,
        dtype: torch.dtype,
    ) -> None:
        self._steps = steps
        self._control_block = steps.participant.control_block
        self._experts = self._control_block.membership.expert
        self._endpoint = endpoint
        self._executor = endpoint.executor
        self._result = result
        self._rounded = result.float()
        self._dtype = dtype
        self._bound = ProgramCache(endpoint.executor, endpoint.topology)
        self._programs: Programs | None = None
        self._source = source
        self._clock = StepClock()
        self._plan: ExchangePlanName = "1pc"
        self._notice = ""
        self._metadata_words = [0] * (3 * endpoint.topology.num_expert_instances)
        self.use_epoch = steps.use_epoch
        self.step_pending = steps.pending
        self.wait = steps.wait
        self.wake = steps.participant.wake

    def begin_step(self, num_tokens: int) -> int:
        self._check_fits(num_tokens)
        steps, seconds = self._steps, self._clock.pop()
        if seconds and steps.counts:
            self._notice = self._source.observe(sum(steps.counts), seconds) or self._notice
        step = steps.begin(num_tokens, self._source.packed_plans)
        self._endpoint.broadcast.publish()
        return step

    def leave(self) -> None:
        self._steps.leave()
        self._endpoint.broadcast.publish()

    def dispatch(self, layer: int, hidden: Tensor) -> Ticket:
        steps = self._steps
        key = steps.next_key(layer, hidden)
        if hidden.dtype != self._dtype:
            raise ValueError(f"dispatch of {hidden.dtype}, the exchange has {self._dtype}")
        self._endpoint.phase = ("announce", steps.step, layer)
        counts = steps.counts or steps.begin_layers(layer)
        self._plan = plan_in(self._control_block.plans(steps.step), sum(counts))
        self._clock.start()
        self._programs = program, reply = self._bound.of(self._plan, counts)
        ticket = steps.dispatched(key, layer)
        with self._endpoint.data_wait("dispatch", steps.step, layer, self._late_peers):
            self._executor.post(program)
            local = {"input": hidden.contiguous()}
            self._executor.run(program, ticket, local, self._metadata_words)
            self._executor.post(reply)
        return ticket

    def combine(self, ticket: Ticket) -> Combined:
        steps = self._steps
        steps.check_in_flight(ticket)
        steps.participant.check_open()
        assert self._programs is not None
        dispatch, reply = self._programs
        with self._endpoint.data_wait("reply", ticket.step, ticket.layer, steps.late_reply):
            self._executor.run(reply, ticket, {"result": self._result}, self._metadata_words)
            self._executor.post(dispatch)
        self._clock.stop()
        steps.in_flight = False
        replies = unpack_metadata(self._metadata_words)
        check_routing(ticket, replies, self._experts)
        notice, self._notice = self._notice, ""
        total, rounded = self._result, self._rounded
        if total is not rounded:
            rounded[: steps.num_tokens] = total[: steps.num_tokens]
        return Combined(rounded[: steps.num_tokens], replies, self._plan, notice)

    def close(self) -> None:
        self._steps.participant.close()
        self._endpoint.leave()

    def _late_peers(self, waited_s: float) -> ExchangeTimeout | None:
        """While rows are gathered: blames who has not dispatched, or whose rows are missing."""
        peer = self._control_block.silent_dispatchers(self._steps.key, self._steps.counts or ())
        waiting_for = self._executor.waiting_for
        if not peer and waiting_for is not None:
            peer = self._endpoint.name(waiting_for)
        stage, step, layer = self._endpoint.phase
        return ExchangeTimeout(peer=peer, stage=stage, step=step, layer=layer, waited_s=waited_s)

    def _check_fits(self, num_tokens: int) -> None:
        if num_tokens > len(self._result):
            raise ConfigError(
                f"{self._endpoint.instance}: a step of {num_tokens} tokens, but the exchange has "
                f"room for {len(self._result)} (--max-num-batched-tokens)"
            )


class NetworkExpert:
    """An `ExpertPort` over messages.

    batch: [max total tokens, hidden], a buffer for accepted rows.
    sums: dtype that partial sums travel in.
    """

    def __init__(
        self, batches: BatchSequence, endpoint: Endpoint, batch: Tensor, sums: torch.dtype
    ) -> None:
        self._batches = batches
        self._participant = batches.participant
        self._control_block = batches.participant.control_block
        self._endpoint = endpoint
        self._executor = endpoint.executor
        self._batch = batch
        self._sums = sums
        self._bound = ProgramCache(endpoint.executor, endpoint.topology)
        self._arrivals = MessageArrivals(endpoint.wakeup.notify)
        self._armed: tuple[int, tuple[int, ...], Programs] | None = None  # step, counts
        self._armed_step = -1
        self._metadata_words = [0] * (3 * endpoint.topology.num_expert_instances)
        self.wake = batches.participant.wake

    def accept(self) -> Work | None:
        self._participant.wait_for(self._woken_or_arrived, self._late)
        if self._participant.woken:
            self._participant.woken = False
            return None
        if self._control_block.all_absent():
            raise self._batches.ended()
        assert self._armed is not None
        step, counts, (dispatch, reply) = self._armed
        arrived = dispatch.receives[0][1].buffer.read_ticket()
        ticket = Ticket(self._control_block.epoch(step), step, arrived.layer)
        with self._endpoint.data_wait("dispatch", step, ticket.layer, self._late_now):
            self._executor.run(dispatch, ticket, {"batch": self._batch}, self._metadata_words)
            self._executor.post(reply)
        return Work(ticket, self._batch[: sum(counts)], counts, self._sums)

    def reply(self, work: Work, partial: Tensor, metadata: ReplyMetadata) -> None:
        self._batches.check_reply(work, partial)
        assert self._armed is not None
        ticket = work.ticket
        dispatch, reply = self._armed[2]
        own = 3 * self._batches.rank
        self._metadata_words[own : own + 3] = pack_metadata((metadata,))
        self._batches.replied(work, metadata)
        with self._endpoint.data_wait("reply", ticket.step, ticket.layer, self._late_peers):
            self._executor.post(dispatch)
            self._arrivals.watch(dispatch.receives[0][1])
            local = {"partial": partial.to(self._sums).contiguous()}
            self._executor.run(reply, ticket, local, self._metadata_words)

    def close(self) -> None:
        self._participant.close()
        self._endpoint.leave()
        self._arrivals.stop()

    def _woken_or_arrived(self) -> bool:
        if self._participant.woken:
            return True
        if self._control_block.all_absent():
            return True
        step = self._control_block.latest_common()
        if step != self._armed_step:
            self._arm(step)
        if self._armed is None:
            return False
        slot = self._armed[2][0].receives[0][1]
        # The next step's rows may be here before the last of its announcements.
        return self._arrivals.has(slot) and slot.buffer.read_ticket().step == step

    def _arm(self, step: int) -> None:
        """Gets ready for the layer passes of a step that all instances have announced."""
        self._armed_step = step
        counts = self._control_block.counts(step)
        self._armed = None
        if not any(counts):
            return
        plan = plan_in(self._control_block.plans(step), sum(counts))
        programs = self._bound.of(plan, counts)
        with self._endpoint.data_wait("dispatch", step, 0, lambda waited_s: None):
            self._executor.post(programs[0])
        self._arrivals.watch(programs[0].receives[0][1])
        self._armed = (step, counts, programs)

    def _late(self, waited_s: float) -> ExchangeTimeout | None:
        """No peer is late before any has begun."""
        error = self._batches.late_dispatch(waited_s)
        key = self._control_block.latest_dispatched()
        if error is None and self._armed and key > self._batches.answered:
            self._endpoint.phase = ("dispatch", *step_and_layer(key))
            return self._blame(self._armed[2][0].receives[0][0].source, waited_s)
        return error

    def _late_now(self, waited_s: float) -> ExchangeTimeout | None:
        return self._batches.late_dispatch(waited_s) or self._late_peers(waited_s)

    def _late_peers(self, waited_s: float) -> ExchangeTimeout | None:
        """Blames the peer that a message is due from."""
        waiting_for = self._executor.waiting_for
        if waiting_for is None:
            return None
        return self._blame(waiting_for, waited_s)

    def _blame(self, rank: int, waited_s: float) -> ExchangeTimeout:
        stage, step, layer = self._endpoint.phase
        peer = self._endpoint.name(rank)
        return ExchangeTimeout(peer=peer, stage=stage, step=step, layer=layer, waited_s=waited_s)
