"""One expert instance: gate, schedule, compute its own replicas, reply.

Every expert instance gets all tokens of a layer and repeats the same gating and the same
scheduling, so that all know who computes what without a word between them (paper section 3,
EGate, and section 4). Apart from its weights it has no state. It knows nothing of requests,
sequences or caches.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from janus_moe.errors import ExchangeError
from janus_moe.experts.epoch import Epoch, first_tables, make_epoch
from janus_moe.experts.recording import RoutingRecorder
from janus_moe.experts.scheduling import Rule, Schedulers
from janus_moe.experts.step_routing import RoutedBatch, StepRouting
from janus_moe.messages import ExpertLoad
from janus_moe.model.expert_block import ExpertModel
from janus_moe.policy.placement import Placement
from janus_moe.policy.statistics import RoutingWindow
from janus_moe.spec import InstanceId
from janus_moe.torch_dtypes import TORCH_DTYPES
from janus_moe.tracing import SpanLog
from janus_moe.transport import ExpertPort, ReplyMetadata, Ticket, Work

WARM_UP_TOKENS = (1, 4, 128)
REPORT_EVERY_S = 1.0
WINDOW_BUCKETS, BUCKET_BATCHES = 32, 32
"""How finely a change of routing is dated; whenever a bucket is full there is a look for one."""

OnLoad = Callable[[ExpertLoad], None]


class LayerReply(NamedTuple):
    """partial: [tokens, hidden] float32 sums over the instance's replicas. expert_ids: [tokens,
    top_k] logical ids that the batch was routed to."""

    partial: Tensor
    metadata: ReplyMetadata
    expert_ids: Tensor


class ExpertInstance:
    """Serves the MoE layers of a model with the replicas that a placement gives one rank.

    instance_id: its name in messages.
    rank: its position among the instances of a placement and of an exchange.
    device: where the model and the batches are.
    model: router weights of all experts, expert weights of this instance's slots.
    layers: model layer id -> MoE layer number, as in `ModelSpec.moe_layer_ids`.
    on_load: told what routing did, every second and every `BUCKET_BATCHES` steps; None: somebody
        else reports.

    Several threads may serve, each a port of its own: they compute one after another. Another may
    `stage` and `unstage` epochs and watch `stepped`.
    """

    def __init__(
        self,
        instance_id: InstanceId,
        rank: int,
        model: ExpertModel,
        placement: Placement,
        rule: Rule,
        layers: tuple[int, ...],
        on_load: OnLoad | None = None,
        spans: SpanLog | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.id = instance_id
        self.rank = rank
        self.model = model
        self.layers = layers
        self.schedulers = Schedulers(rank, rule, device)
        # Set by the last layer of a step, or of a half of one; cleared by whoever watches.
        self.stepped = threading.Event()
        self._moe_layer = {layer: number for number, layer in enumerate(layers)}
        self._device = torch.device(device)
        self._epoch = make_epoch(placement, first_tables(placement, rank), self.schedulers)
        self._staged: dict[int, Epoch] = {}
        self._latest = self._before_latest = self._epoch
        self._on_load = on_load
        self._spans = spans or SpanLog()
        self._window = _new_window(len(layers), placement.num_experts)
        self._recorder: RoutingRecorder | None = None
        self._on_device = StepRouting()
        self._counted = 0  # batches of the last layer
        self._reported_at = 0.0
        self._turn = threading.Lock()

    @property
    def epoch(self) -> Epoch:
        """What the latest step was served with."""
        return self._epoch

    @property
    def latest(self) -> Epoch:
        """What steps to come are served with; no step need have used it yet."""
        return self._latest

    def record_to(self, recorder: RoutingRecorder) -> None:
        """Shows the routing of every batch from now on to `recorder`, whose owner closes it."""
        self._recorder = recorder

    def stage(self, epoch: Epoch) -> None:
        """From now on steps may come with this epoch or the one before; its weights are in their
        slots."""
        self._before_latest, self._latest = self._latest, epoch
        for number in list(self._staged):
            if number < self._before_latest.number:
                self._staged.pop(number, None)
        self._staged[epoch.number] = epoch

    def unstage(self, number: int) -> None:
        """No step will come with this epoch."""
        self._staged.pop(number, None)
        if self._latest.number == number:
            self._latest = self._before_latest

    def serve_once(self, port: ExpertPort) -> None:
        """Answers one exchange, or nothing when `port` was woken for another reason."""
        work = port.accept()
        if work is not None:
            with self._turn:
                self._answer(port, work)

    def _answer(self, port: ExpertPort, work: Work) -> None:
        self._spans.step, self._spans.tokens = work.ticket.step, sum(work.num_tokens)
        self._spans.mark("wait", work.ticket.layer)
        answer = self.compute(work)
        self._spans.mark("experts", work.ticket.layer)
        port.reply(work, answer.partial, answer.metadata)
        self._spans.mark("reply", work.ticket.layer)
        self._observe(self._moe_layer[work.ticket.layer], answer.expert_ids)
        self._spans.mark("statistics", work.ticket.layer)
        if work.ticket.layer == self.layers[-1]:
            self._end_of_step()

    def warm_up(self) -> None:
        """Compiles what compiles on first use, for one token and for many."""
        spec, layer = self.model.spec, self.layers[0]
        dtype = TORCH_DTYPES[spec.dtype]
        self._epoch.schedulers[0].warm_up()
        for num_tokens in WARM_UP_TOKENS:
            hidden = torch.ones(num_tokens, spec.hidden_size, dtype=dtype, device=self._device)
            ticket = Ticket(epoch=self._epoch.number, step=0, layer=layer)
            self.compute(Work(ticket=ticket, hidden=hidden, num_tokens=(num_tokens,)))
        self._window = _new_window(len(self.layers), spec.moe.num_experts)

    def compute(self, work: Work) -> LayerReply:
        """What this instance's replicas contribute to one layer."""
        if work.ticket.epoch != self._epoch.number:
            self._switch(work.ticket)
        layer = work.ticket.layer
        with torch.inference_mode():
            expert_ids, weights = self.model.route(layer, work.hidden)
            self._spans.mark("route", layer)
            scheduler = self._epoch.schedulers[self._moe_layer[layer]]
            slot_ids, metadata = scheduler.schedule(expert_ids)
            self._spans.mark("schedule", layer)
            partial = self.model.compute(layer, work.hidden, slot_ids, weights)
        return LayerReply(partial, metadata, expert_ids)

    def _observe(self, number: int, expert_ids: Tensor) -> None:
        """Statistics of a batch; nobody waits for them, so they come after the reply."""
        if self._on_load is None and self._recorder is None:
            return
        if expert_ids.device.type == "cpu":
            self._count(RoutedBatch(number, expert_ids.numpy()))
        else:
            self._on_device.add(number, expert_ids)

    def _count(self, batch: RoutedBatch) -> None:
        if self._on_load is not None:
            self._window.record(*batch)
            self._counted += batch.layer == len(self.layers) - 1
        if self._recorder is not None:
            self._recorder.record(*batch)

    def _switch(self, ticket: Ticket) -> None:
        """Serves with another epoch from now on; earlier ones never come again."""
        epoch = self._staged.pop(ticket.epoch, None)
        if epoch is None:
            raise ExchangeError(
                f"{self.id} serves epoch {self._epoch.number} and was not prepared for "
                f"epoch {ticket.epoch} of step {ticket.step}"
            )
        self._epoch = epoch

    def _end_of_step(self) -> None:
        self.stepped.set()
        for batch in self._on_device.end_of_step():
            self._count(batch)
        if self._recorder is not None:
            self._recorder.end_of_step()
        now = time.monotonic()
        due = self._counted % BUCKET_BATCHES == 0 or now - self._reported_at >= REPORT_EVERY_S
        if self._on_load is None or not due:
            return
        self._reported_at = now
        changed = self._window.forget_change()
        seen = self._window.read()
        self._on_load(
            ExpertLoad(
                num_batches=tuple(seen.num_batches.tolist()),
                num_tokens=tuple(seen.num_tokens.tolist()),
                tokens=tuple(map(tuple, seen.tokens.tolist())),
                changed=changed,
            )
        )


def _new_window(num_layers: int, num_experts: int) -> RoutingWindow:
    return RoutingWindow(
        num_layers,
        num_experts,
        WINDOW_BUCKETS * BUCKET_BATCHES,
        WINDOW_BUCKETS,
        coactivation_stride=0,
    )
