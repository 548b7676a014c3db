"""From a setup message to instances: load weights and warm up once, then serve memberships.

The one place that knows how models, policies and ports fit together in a worker.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from janus_moe.attention.instance import AttentionInstance
from janus_moe.attention.loop import serve as serve_attention
from janus_moe.attention.runner import AttentionRunner
from janus_moe.attention.step_input import StepLimits
from janus_moe.cluster.activation_costs import activation_rule
from janus_moe.cluster.deployment.thread_counts import InstanceCounts, most_computing
from janus_moe.cluster.worker.hosted_instance import (
    Connection,
    HostedInstance,
    Send,
    closing_all,
    use_threads,
)
from janus_moe.experts.epoch import first_tables, make_epoch
from janus_moe.experts.epoch_loader import EpochLoader
from janus_moe.experts.instance import ExpertInstance
from janus_moe.experts.loop import serve as serve_experts
from janus_moe.experts.pacing import PaceName
from janus_moe.experts.recording import RoutingRecorder
from janus_moe.experts.routing_observer import RoutingObserver
from janus_moe.experts.runner import ExpertRunner
from janus_moe.experts.scheduling import Schedulers
from janus_moe.experts.served_epochs import ServedEpochs
from janus_moe.experts.slot_filling import LoadPiece
from janus_moe.messages import Progress, Setup, ToWorker
from janus_moe.model.attention_block import AttentionModel, KvCache
from janus_moe.model.checkpoint import Checkpoint
from janus_moe.model.expert_block import ExpertModel
from janus_moe.model.memory import attention_bytes, expert_pool_bytes
from janus_moe.model.piecewise import Piece
from janus_moe.policy.paging import BlockManager
from janus_moe.policy.placement import Placement
from janus_moe.spec import InstanceId
from janus_moe.tracing import SpanLog
from janus_moe.transport import (
    Exchange,
    ExpertPort,
    WaitRule,
    spin_budget_us,
)
from janus_moe.transport.loopback import LoopbackExchange

REPORT_EVERY_S = 0.2


def build_instances(
    setup: Setup, send: Send, load_piece: LoadPiece = Piece.load
) -> Sequence[HostedInstance]:
    """Loads and warms up the instances of a worker, which then belong to no exchange yet.

    setup: its membership says which experts an expert instance loads.
    send: takes what the instances report.
    load_piece: how weights are read while the service runs; tests pass faults.
    """
    use_threads(setup.num_threads)
    builder = _Builder(setup, send, load_piece)
    experts = [builder.expert(i) for i in setup.instances if i.pool == "expert"]
    attention = [builder.attention(i) for i in setup.instances if i.pool == "attention"]
    return [*attention, *experts]


def wait_rule(setup: Setup) -> WaitRule:
    """How the ports of the setup's membership wait."""
    return WaitRule(
        timeout_s=setup.config.exchange_timeout,
        spin_us=spin_budget_us(setup.num_cores, _compute_threads(setup)),
    )


def _compute_threads(setup: Setup) -> int:
    """Threads of this worker's host that may compute at once."""
    config, membership = setup.config, setup.membership
    here = membership.host_of(setup.instances[0])
    counts: InstanceCounts = {
        "attention": membership.attention_hosts.count(here),
        "expert": membership.expert_hosts.count(here),
    }
    computing = most_computing(counts, config.transport, config.num_micro_batches)
    return setup.num_threads * computing


def placement_of(setup: Setup) -> Placement:
    """Where the experts are in the first steps of the setup's membership."""
    return Placement(
        epoch=setup.membership.placement_epoch,
        num_experts=setup.spec.moe.num_experts,
        slots=setup.slots,
    )


class _Builder:
    """Shares what the instances of one worker have in common."""

    def __init__(self, setup: Setup, send: Send, load_piece: LoadPiece) -> None:
        self._setup = setup
        self._send = send
        self._load_piece = load_piece
        self._device = torch.device(setup.config.device)
        self._checkpoint = Checkpoint.open(Path(setup.checkpoint))

    def attention(self, instance_id: InstanceId) -> HostedInstance:
        setup, config, spans = self._setup, self._setup.config, SpanLog()
        model = AttentionModel.load(
            setup.spec,
            self._checkpoint,
            self._device,
            self._reporter(instance_id),
            config.max_model_len,
        )
        self._report_loaded(instance_id, attention_bytes(setup.spec))
        cache = KvCache.allocate(setup.spec, setup.num_kv_blocks, config.block_size, self._device)
        limits = StepLimits(
            config.max_num_seqs,
            config.max_num_batched_tokens,
            config.max_model_len or setup.spec.max_position,
            config.micro_batch_threshold,
        )
        blocks = BlockManager(
            setup.num_kv_blocks,
            config.block_size,
            enable_prefix_caching=config.prefix_caching == "on",
        )
        runner = AttentionRunner(model, cache, limits, spans)
        instance = AttentionInstance(instance_id, runner, blocks, limits)

        def connect(
            setup: Setup, exchanges: Sequence[Exchange], rule: WaitRule, pace: PaceName
        ) -> Connection:
            membership = setup.membership
            rank = membership.rank(instance_id)
            ports = [exchange.attention_port(rank, rule) for exchange in exchanges]

            def body(inbox: queue.SimpleQueue[ToWorker]) -> None:
                instance.connect(membership.expert, ports, membership.placement_epoch)
                serve_attention(instance, inbox, self._send)

            return Connection(membership.generation, ports[0].wake, body, closing_all(ports))

        return HostedInstance(instance_id, connect, spans, self._send)

    def expert(self, instance_id: InstanceId) -> HostedInstance:
        setup, spans = self._setup, SpanLog()
        rank, placement = setup.membership.rank(instance_id), placement_of(setup)
        slots = [layer[rank] for layer in setup.slots]
        model = ExpertModel.load(
            setup.spec,
            self._checkpoint,
            slots,
            self._device,
            self._reporter(instance_id),
            setup.spare_slots,
        )
        closing = contextlib.ExitStack()
        recorder = None
        if rank == 0 and setup.config.record_routing is not None:  # all see the same routing
            recorder = self._recorder(setup.config.record_routing)
            closing.callback(recorder.close)
        rule = activation_rule(setup.config)
        schedulers = Schedulers(rank, rule, self._device)
        first = make_epoch(placement, first_tables(placement, rank), schedulers)
        epochs = ServedEpochs(instance_id, rank, first, schedulers)
        layers = setup.spec.moe_layer_ids
        instance = ExpertInstance(
            instance_id, ExpertRunner(model, spans), epochs, layers, self._observer(rank, recorder)
        )
        loader = EpochLoader(
            instance,
            self._checkpoint,
            setup.config.rebalance_bytes_per_step,
            self._send,
            self._load_piece,
        )
        self._report_loaded(instance_id, expert_pool_bytes(setup.spec, slots))
        self._send(Progress(instance=instance_id, stage="warm up"))
        instance.warm_up()

        def connect(
            setup: Setup, exchanges: Sequence[Exchange], wait: WaitRule, pace: PaceName
        ) -> Connection:
            rank, placement = setup.membership.rank(instance_id), placement_of(setup)
            epochs, observer = instance.epochs, instance.observer
            if (rank, placement.epoch) != (epochs.rank, epochs.current.number):
                epochs = loader.stage(placement, rank, pace)
                observer = self._observer(rank, recorder)

            def serve_once(port: ExpertPort) -> None:
                if instance.epochs is not epochs:  # its thread may begin later
                    instance.connect(epochs, observer)
                instance.serve_once(port)

            ports: list[ExpertPort] = []
            if isinstance(exchanges[0], LoopbackExchange):
                exchanges[0].serve(rank, serve_once)
            else:
                ports = [exchange.expert_port(rank, wait) for exchange in exchanges]

            def body(inbox: queue.SimpleQueue[ToWorker]) -> None:
                if ports:
                    instance.connect(epochs, observer)
                    serve_experts(instance, loader, ports, inbox)
                else:
                    loader.serve(inbox)

            wake = ports[0].wake if ports else lambda: None
            return Connection(setup.membership.generation, wake, body, closing_all(ports))

        def drop(generation: int) -> None:
            loader.unstage(generation)
            if generation < instance.epochs.latest.number:  # it was served before: memory is free
                settle = partial(loader.settle, setup.spare_slots)
                threading.Thread(target=settle, name="settle", daemon=True).start()

        return HostedInstance(instance_id, connect, spans, self._send, closing.close, drop)

    def _observer(self, rank: int, recorder: RoutingRecorder | None) -> RoutingObserver:
        """All expert instances see the same routing; the one of rank 0 reports it."""
        return RoutingObserver(
            len(self._setup.spec.moe_layer_ids),
            self._setup.spec.moe.num_experts,
            self._send if rank == 0 else None,
            recorder,
        )

    def _recorder(self, path: str) -> RoutingRecorder:
        spec, max_tokens = self._setup.spec, self._setup.config.record_routing_tokens
        layers = len(spec.moe_layer_ids)
        return RoutingRecorder(Path(path), layers, spec.moe.num_experts, max_tokens)

    def _report_loaded(self, instance_id: InstanceId, num_bytes: int) -> None:
        self._send(Progress(instance=instance_id, stage="load", done_bytes=num_bytes))

    def _reporter(self, instance_id: InstanceId) -> Callable[[int], None]:
        """A callback that counts loaded bytes and reports now and then."""
        done, reported_at = 0, 0.0

        def on_bytes(count: int) -> None:
            nonlocal done, reported_at
            done += count
            if time.monotonic() - reported_at >= REPORT_EVERY_S:
                reported_at = time.monotonic()
                self._send(Progress(instance=instance_id, stage="load", done_bytes=done))

        return on_bytes
