"""One expert instance: gate, schedule, compute its own replicas, reply.

Every expert instance gets all tokens of a layer and repeats the same gating and the same
scheduling, so that all know who computes what without a word between them (paper section 3,
EGate, and section 4). Apart from its weights it has no state. It knows nothing of requests,
sequences or caches.
"""

from __future__ import annotations

import time
import zlib

import numpy as np
import torch
from numpy.typing import NDArray

from janus_moe.model.expert_block import ExpertModel
from janus_moe.policy.activation import Policy, Scheduler
from janus_moe.policy.placement import Placement
from janus_moe.transport import ExpertPort, ReplyNote, Ticket, Work

WARM_UP_TOKENS = (1, 4, 128)


class ExpertInstance:
    """Serves the MoE layers of a model with the replicas that a placement gives instance `index`.

    model: router weights of all experts, expert weights of this instance's slots.
    layers: model layer id -> MoE layer number, as in `ModelSpec.moe_layer_ids`.
    """

    def __init__(
        self,
        index: int,
        model: ExpertModel,
        placement: Placement,
        policy: Policy,
        layers: tuple[int, ...],
    ) -> None:
        self.index = index
        self._model = model
        self._epoch = placement.epoch
        self._moe_layer = {layer: number for number, layer in enumerate(layers)}
        numbers = range(len(layers))
        self._schedulers = [Scheduler(placement.layer_layout(n), policy) for n in numbers]
        self._slots = [placement.slot_table(n, index) for n in numbers]

    def serve_once(self, port: ExpertPort) -> None:
        """Answers one exchange, or nothing when `port` was woken for another reason."""
        work = port.accept()
        if work is not None:
            partial, note = self.compute(work)
            port.reply(work, partial, note)

    def warm_up(self) -> None:
        """Compiles what compiles on first use, for one token and for many."""
        spec, layer = self._model.spec, min(self._moe_layer)
        device = self._model.layers[layer].router.device
        for num_tokens in WARM_UP_TOKENS:
            hidden = torch.ones(
                num_tokens, spec.hidden_size, dtype=getattr(torch, spec.dtype), device=device
            )
            ticket = Ticket(epoch=self._epoch, step=0, layer=layer)
            self.compute(Work(ticket=ticket, hidden=hidden, num_tokens=(num_tokens,)))

    def compute(self, work: Work) -> tuple[torch.Tensor, ReplyNote]:
        """Partial sums [tokens, hidden] float32 of this instance's replicas for one layer."""
        number = self._moe_layer[work.ticket.layer]
        with torch.inference_mode():
            expert_ids, weights = self._model.route(work.ticket.layer, work.hidden)
            ids: NDArray[np.int32] = expert_ids.cpu().numpy()
            start = time.perf_counter_ns()
            slot_ids, activated = self._own_slots(number, ids)
            scheduler_ns = time.perf_counter_ns() - start
            partial = self._model.compute(
                work.ticket.layer,
                work.hidden,
                torch.from_numpy(slot_ids).to(expert_ids.device),
                weights,
            )
        digest = zlib.crc32(ids.tobytes(), self._epoch)
        return partial, ReplyNote(digest, activated, scheduler_ns)

    def _own_slots(self, number: int, ids: NDArray[np.int32]) -> tuple[NDArray[np.int32], int]:
        """Local slot of every (token, k) that falls to this instance, -1 elsewhere, and how many
        distinct experts that activates here."""
        assignment = self._schedulers[number].schedule(ids)
        local = np.full(len(self._slots[number]) + 1, -1, dtype=np.int32)  # [-1] is padding's
        mine = assignment.instance_of_expert == self.index
        np.copyto(local[:-1], self._slots[number], where=mine)
        return local[ids], int(assignment.activated[self.index])
