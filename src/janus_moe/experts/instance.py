"""One expert instance: it answers exchanges with what its runner computes, and observes routing.

Apart from its weights it has no state that matters. It knows nothing of requests, sequences or
caches, nor of how a layer is computed.
"""

from __future__ import annotations

import threading

from janus_moe.experts.routing_observer import RoutingObserver
from janus_moe.experts.runner import ExpertRunner, LayerReply
from janus_moe.experts.scheduling import Table
from janus_moe.experts.served_epochs import ServedEpochs
from janus_moe.model.expert_block import ExpertLayer
from janus_moe.spec import InstanceId
from janus_moe.transport import ExpertPort, Work


class ExpertInstance:
    """Serves the MoE layers of a model with the replicas that placements give it.

    Several threads may serve, each a port of its own: they compute one after another.

    instance_id: its name in messages.
    runner: computes layers.
    epochs: which placement a step has; another thread may stage and unstage.
    layers: [MoE layers] model layer ids, as in `ModelSpec.moe_layer_ids`.
    observer: sees the routing of every batch.
    """

    def __init__(
        self,
        instance_id: InstanceId,
        runner: ExpertRunner,
        epochs: ServedEpochs,
        layers: tuple[int, ...],
        observer: RoutingObserver,
    ) -> None:
        self.id = instance_id
        self.runner = runner
        self.epochs = epochs
        self.layers = layers
        # Set by the last layer of a step, or of a micro-batch; cleared by the thread that watches.
        self.stepped = threading.Event()
        self._moe_layer = {layer: number for number, layer in enumerate(layers)}
        self.observer = observer
        self._turn = threading.Lock()

    def connect(self, epochs: ServedEpochs, observer: RoutingObserver) -> None:
        """Serves another membership from now on; no thread may serve meanwhile.

        A step that was under way in the one before has been dropped.
        """
        self.epochs = epochs
        self.observer = observer
        observer.forget_unfinished()

    def move_layer(self, layer: int, weights: ExpertLayer, table: Table) -> None:
        """Serves one layer from other memory and other slots, from the next layer pass on.

        layer: MoE layer number.
        weights: hold the same experts as before.
        table: the slot of each of them.
        """
        epochs = self.epochs
        scheduler = epochs.schedulers.make(epochs.latest.placement, layer, table)
        with self._turn:
            self.runner.model.layers[self.layers[layer]] = weights
            epochs.move_layer(layer, table, scheduler)

    def warm_up(self) -> None:
        """Compiles what compiles on first use."""
        self.runner.warm_up(self.layers[0], self.epochs.current.schedulers[0])

    def serve_once(self, port: ExpertPort) -> None:
        """Answers one exchange, or nothing when `port` was woken for another reason.

        Call it under torch.inference_mode.
        """
        work = port.accept()
        if work is not None:
            with self._turn:
                self._answer(port, work)

    def compute(self, work: Work) -> LayerReply:
        """The answer to one exchange, in the epoch of its step."""
        ticket = work.ticket
        schedulers = self.epochs.of_step(ticket).schedulers
        layer = ticket.layer
        return self.runner.compute(
            layer, work.hidden, schedulers[self._moe_layer[layer]], work.sums
        )

    def _answer(self, port: ExpertPort, work: Work) -> None:
        spans, layer = self.runner.spans, work.ticket.layer
        spans.step, spans.tokens = work.ticket.step, sum(work.num_tokens)
        spans.mark("wait", layer)
        reply = self.compute(work)
        port.reply(work, reply.partial, reply.metadata)
        spans.mark("reply", layer)
        # Statistics come after the reply, since no instance waits for them.
        self.observer.batch(self._moe_layer[layer], reply.expert_ids)
        last = layer == self.layers[-1]
        if last:
            self.observer.end_of_step()
        spans.mark("statistics", layer)
        if last:
            self.stepped.set()
