"""The layers of one step of an attention instance, from token ids to hidden states.

This is the seam of the system: everything between `dispatch` and `combine` happens in the expert
pool, while this instance computes the shared expert or another micro-batch. The runner outlives
exchanges: it is given the ports of each step. It does not know requests, batching or sampling, nor
who else takes part in a step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from janus_moe.attention.exchange_log import ExchangeLog
from janus_moe.attention.step_input import StepBuffers, StepLimits
from janus_moe.model.attention_block import AttentionModel, KvCache, StepInput
from janus_moe.policy.batching import StepPlan
from janus_moe.tracing import SpanLog
from janus_moe.transport import AttentionPort, Ticket

MAX_MICRO_BATCHES = 2


class AttentionRunner:
    """Computes steps with the weights, the KV cache and the input buffers that it owns.

    Whatever belongs to one step ends with the call of `run`, also when an exchange raises. Cache
    rows are written by position, so a step that was dropped can be computed again.

    model: weights of the attention half.
    cache: of the blocks that the plans name.
    limits: how large a step may be.
    spans: where pieces of time are recorded.
    """

    def __init__(
        self,
        model: AttentionModel,
        cache: KvCache,
        limits: StepLimits,
        spans: SpanLog | None = None,
    ) -> None:
        self.spans = spans or SpanLog()
        self._model = model
        self._cache = cache
        self._moe_layers = model.spec.moe_layer_ids
        num_blocks, block_size = cache.layers[0][0].shape[:2]
        self._buffers = [
            StepBuffers(limits, num_blocks, block_size, model.embedding.device)
            for _ in range(MAX_MICRO_BATCHES if limits.micro_batch_threshold else 1)
        ]

    def load(self, plans: Sequence[StepPlan]) -> list[StepInput]:
        """Lays the micro-batches of a step out in the input buffers; valid until the next call."""
        return [self._buffers[place].fill(plan) for place, plan in enumerate(plans)]

    def run(
        self, inputs: Sequence[StepInput], ports: Sequence[AttentionPort], log: ExchangeLog
    ) -> Tensor:
        """Hidden states after the last layer, [tokens, hidden], before the final norm.

        Micro-batches take turns (ping-pong): while the experts have a layer of one, this instance
        computes the next layer of another.

        inputs: [micro-batches] what `load` made, announced on the port of the same place.
        log: filled with what was seen of the expert pool.
        """
        embed = self._model.embed
        parts = [
            _MicroBatch(step, port, embed(step)) for step, port in zip(inputs, ports, strict=False)
        ]
        for layer in self._moe_layers:
            for part in parts:
                self._advance(part, layer, log)
                self._dispatch(part, layer, log)
        for part in parts:
            self._advance(part, self._model.spec.num_layers, log)
        return parts[0].hidden if len(parts) == 1 else torch.cat([part.hidden for part in parts])

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, vocabulary] float32 from hidden states [rows, hidden] that `run` returned."""
        return self._model.logits(hidden)

    def _advance(self, part: _MicroBatch, end: int, log: ExchangeLog) -> None:
        """Combines the layer that is in flight, then computes the dense ones before layer `end`."""
        if part.ticket is not None:
            self._combine(part, part.ticket, log)
        model = self._model
        for layer in range(part.next_layer, end):
            hidden, normed = model.attention(layer, part.hidden, part.step, self._cache)
            part.hidden = hidden + model.dense(layer, normed)

    def _dispatch(self, part: _MicroBatch, layer: int, log: ExchangeLog) -> None:
        """Sends the rows of an MoE layer and computes the shared expert meanwhile."""
        model, mark = self._model, self.spans.mark
        part.hidden, normed = model.attention(layer, part.hidden, part.step, self._cache)
        mark("attention", layer)
        start = time.perf_counter()
        part.ticket = part.port.dispatch(layer, normed)
        log.dispatch_seconds += time.perf_counter() - start
        mark("dispatch", layer)
        part.shared = model.shared(layer, normed)
        if part.shared is not None:
            mark("shared expert", layer)
        part.next_layer = layer + 1

    def _combine(self, part: _MicroBatch, ticket: Ticket, log: ExchangeLog) -> None:
        """Adds the routed experts and the shared expert of the layer in flight."""
        start = time.perf_counter()
        combined = part.port.combine(ticket)
        log.combine_seconds += time.perf_counter() - start
        self.spans.mark("combine", ticket.layer)
        log.tickets.append(ticket)
        log.replies.append(combined.replies)
        log.epoch = ticket.epoch
        log.plan = combined.plan
        if combined.notice:
            log.notices.append(combined.notice)
        hidden, shared = part.hidden, part.shared
        routed = combined.hidden.to(hidden.dtype)
        part.hidden = hidden + (routed if shared is None else routed + shared)
        part.ticket = None


class _MicroBatch:
    """A part of a step on its way through the layers.

    step: its tokens.
    port: its own exchange with the expert pool.
    hidden: [tokens, hidden] after the layers before `next_layer`; less its experts while in flight.
    ticket: of the layer pass in flight; None when there is none.
    shared: [tokens, hidden] the shared expert of the layer in flight; None where there is none.
    next_layer: the layers before it are done or in flight.
    """

    __slots__ = ("hidden", "next_layer", "port", "shared", "step", "ticket")

    def __init__(self, step: StepInput, port: AttentionPort, hidden: Tensor) -> None:
        self.step = step
        self.port = port
        self.hidden = hidden
        self.ticket: Ticket | None = None
        self.shared: Tensor | None = None
        self.next_layer = 0
