"""One MoE layer of an expert instance, computed: route, schedule, the experts of its own slots.

Every expert instance gets all rows of a layer and repeats the same routing and the same scheduling,
so that all know who computes what without a message between them (EGate, sections 3 and 4 of
the paper). The runner keeps nothing from one layer to the next. It does not know epochs, exchanges,
statistics or requests.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from janus_moe.experts.scheduling import LayerScheduler
from janus_moe.model.expert_block import ExpertModel
from janus_moe.torch_dtypes import TORCH_DTYPES
from janus_moe.tracing import SpanLog
from janus_moe.transport import ReplyMetadata

WARM_UP_TOKENS = (1, 4, 128)


class LayerReply(NamedTuple):
    """What this instance's replicas contribute to one layer.

    partial: [tokens, hidden] float32 or float64, sums over the instance's replicas.
    metadata: what travels with them.
    expert_ids: [tokens, top_k] int32, logical ids that the rows were routed to.
    """

    partial: Tensor
    metadata: ReplyMetadata
    expert_ids: Tensor


class ExpertRunner:
    """Computes layers with the weights that it owns, under torch.inference_mode.

    model: router weights of all experts, expert weights of this instance's slots.
    spans: where pieces of time are recorded.
    """

    def __init__(self, model: ExpertModel, spans: SpanLog | None = None) -> None:
        self.model = model
        self.spans = spans or SpanLog()

    def compute(
        self, layer: int, hidden: Tensor, scheduler: LayerScheduler, sums: torch.dtype
    ) -> LayerReply:
        """The reply to the rows of one layer.

        layer: model layer id.
        hidden: [tokens, hidden], rows of all participants.
        scheduler: of this layer, in the epoch of the step.
        sums: float32 or float64, dtype of the partial sums.
        """
        model, mark = self.model, self.spans.mark
        expert_ids, weights = model.route(layer, hidden)
        mark("route", layer)
        slot_ids, metadata = scheduler.schedule(expert_ids)
        mark("schedule", layer)
        partial = model.compute(layer, hidden, slot_ids, weights, sums)
        mark("experts", layer)
        return LayerReply(partial, metadata, expert_ids)

    def warm_up(self, layer: int, scheduler: LayerScheduler) -> None:
        """Compiles what compiles on first use, for one token and for many.

        layer: any MoE layer, as a model layer id.
        scheduler: of that layer.
        """
        spec, device = self.model.spec, self.model.layers[layer].router.device
        dtype = TORCH_DTYPES[spec.dtype]
        scheduler.warm_up()
        with torch.inference_mode():
            for num_tokens in WARM_UP_TOKENS:
                hidden = torch.ones(num_tokens, spec.hidden_size, dtype=dtype, device=device)
                for sums in (torch.float32, torch.float64):
                    self.compute(layer, hidden, scheduler, sums)
