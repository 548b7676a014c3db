"""From a setup message to running instances: load weights, warm up, give each a thread's work.

The one place that knows how models, policies and ports fit together in a worker.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numba
import torch

from janus_moe.attention.instance import AttentionInstance
from janus_moe.attention.loop import serve as serve_attention
from janus_moe.attention.runner import AttentionRunner
from janus_moe.attention.step_input import StepLimits
from janus_moe.cluster.activation_costs import activation_rule
from janus_moe.experts.epoch_loader import EpochLoader, LoadPiece
from janus_moe.experts.instance import ExpertInstance
from janus_moe.experts.loop import serve as serve_experts
from janus_moe.experts.recording import RoutingRecorder
from janus_moe.experts.routing_observer import RoutingObserver
from janus_moe.experts.runner import ExpertRunner
from janus_moe.experts.scheduling import Schedulers
from janus_moe.experts.served_epochs import ServedEpochs
from janus_moe.messages import FromWorker, Progress, Setup, ToWorker, Trace, Traced
from janus_moe.model.attention_block import AttentionModel, KvCache
from janus_moe.model.checkpoint import Checkpoint
from janus_moe.model.expert_block import ExpertModel
from janus_moe.model.memory import attention_bytes, expert_pool_bytes
from janus_moe.model.piecewise import Piece
from janus_moe.policy.paging import BlockManager
from janus_moe.policy.placement import Placement
from janus_moe.spec import InstanceId
from janus_moe.tracing import SpanLog
from janus_moe.transport import Exchange, WaitRule, spin_budget_us
from janus_moe.transport.loopback import LoopbackExchange
from janus_moe.transport.network.exchange import NetworkExchange

Send = Callable[[FromWorker], None]
ThreadBody = Callable[[queue.SimpleQueue[ToWorker]], None]
REPORT_EVERY_S = 0.2
MESSAGE_ROWS = {"send": "sent", "receive": "received"}


class HostedInstance:
    """An instance in a worker: its inbox, and the work of its thread (in loopback, where attention
    instances run the experts, an expert's thread only prepares epochs). spans: what it did when."""

    def __init__(
        self,
        instance_id: InstanceId,
        wake: Callable[[], None],
        work: ThreadBody,
        spans: SpanLog,
        send: Send,
    ) -> None:
        self.id = instance_id
        self._spans = spans
        self._send = send
        self._inbox: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
        self._wake = wake
        self._work = work

    def post(self, message: ToWorker) -> None:
        """Puts a message in the inbox and wakes the instance; starts and stops recording."""
        if isinstance(message, Trace):
            self._trace(message.recording)
            return
        self._inbox.put(message)
        self._wake()

    def serve(self) -> None:
        """The work of the instance's thread, until a Stop message."""
        self._work(self._inbox)

    def _trace(self, recording: bool) -> None:
        now_ns, spans = time.perf_counter_ns(), self._spans.stop()
        if recording:
            self._spans.start()
        self._send(Traced(instance=self.id, now_ns=now_ns, spans=() if recording else spans))


def _closing(stack: contextlib.ExitStack, work: ThreadBody) -> ThreadBody:
    """The same work; afterwards the stack is closed, whatever happened."""

    def and_close(inbox: queue.SimpleQueue[ToWorker]) -> None:
        with stack:
            work(inbox)

    return and_close


def build_instances(
    setup: Setup, exchanges: Sequence[Exchange], send: Send, load_piece: LoadPiece = Piece.load
) -> Sequence[HostedInstance]:
    """Loads and warms up the instances of a worker.

    Experts come first: in loopback the attention instances call them.
    exchanges: what `open_exchanges` made; the caller shuts them down.
    load_piece: how weights are read while the service runs; tests pass faults.
    """
    torch.set_num_threads(setup.num_threads)
    numba.set_num_threads(min(setup.num_threads, numba.config.NUMBA_NUM_THREADS))
    builder = _Builder(setup, exchanges, send, load_piece)
    experts = [builder.expert(i) for i in setup.instances if i.pool == "expert"]
    attention = [builder.attention(i) for i in setup.instances if i.pool == "attention"]
    return [*attention, *experts]


def _computing_here(setup: Setup) -> int:
    """Instances on this worker's host that may compute at once: those of the larger pool, because
    the pools take turns; all of them with several micro-batches."""
    members = setup.membership
    here = members.host_of(setup.instances[0])
    sizes = [hosts.count(here) for hosts in (members.attention_hosts, members.expert_hosts)]
    return sum(sizes) if setup.config.num_micro_batches > 1 else max(sizes)


class _Builder:
    """Shares what the instances of one worker have in common."""

    def __init__(
        self, setup: Setup, exchanges: Sequence[Exchange], send: Send, load_piece: LoadPiece
    ) -> None:
        self._setup = setup
        self._send = send
        self._load_piece = load_piece
        self._device = torch.device(setup.config.device)
        self._checkpoint = Checkpoint.open(Path(setup.checkpoint))
        self._placement = Placement(
            epoch=setup.membership.placement_epoch,
            num_experts=setup.spec.moe.num_experts,
            slots=setup.slots,
        )
        self._exchanges = exchanges
        # A waiter may spin when its own core is not wanted by those it waits for.
        wanted = 1 + setup.num_threads * _computing_here(setup)
        self._rule = WaitRule(
            timeout_s=setup.config.exchange_timeout,
            spin_us=spin_budget_us(setup.num_cores, wanted),
        )

    def _spans(self) -> SpanLog:
        """Of one instance; where messages have a beginning and an end, they are recorded too."""
        spans = SpanLog()
        over_network = [e for e in self._exchanges if isinstance(e, NetworkExchange)]
        if over_network:
            members = self._setup.membership.instances

            def record(
                peer: int, way: str, num_bytes: int, stage: str, start_ns: int, end_ns: int
            ) -> None:
                row, name = MESSAGE_ROWS[way], str(members[peer])
                spans.message(row, stage, name, num_bytes, start_ns, end_ns)

            for exchange in over_network:
                exchange.record_to(record)
        return spans

    def attention(self, instance_id: InstanceId) -> HostedInstance:
        setup, config, spans = self._setup, self._setup.config, self._spans()
        rank = setup.membership.rank(instance_id)
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
        instance.connect(
            setup.membership.expert,
            [exchange.attention_port(rank, self._rule) for exchange in self._exchanges],
        )
        return HostedInstance(
            instance_id,
            instance.wake,
            lambda inbox: serve_attention(instance, inbox, self._send),
            spans,
            self._send,
        )

    def expert(self, instance_id: InstanceId) -> HostedInstance:
        setup, spans = self._setup, self._spans()
        rank = setup.membership.rank(instance_id)
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
        layers = setup.spec.moe_layer_ids
        observer = RoutingObserver(
            len(layers),
            setup.spec.moe.num_experts,
            self._send if rank == 0 else None,  # all see the same routing
            recorder,
        )
        schedulers = Schedulers(rank, activation_rule(setup.config), self._device)
        epochs = ServedEpochs(instance_id, rank, self._placement, schedulers)
        runner = ExpertRunner(model, spans)
        instance = ExpertInstance(instance_id, runner, epochs, layers, observer)
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
        member = partial(HostedInstance, spans=spans, send=self._send)
        if isinstance(self._exchanges[0], LoopbackExchange):
            self._exchanges[0].serve(rank, instance.serve_once)
            return member(instance_id, lambda: None, _closing(closing, loader.serve))
        ports = [exchange.expert_port(rank, self._rule) for exchange in self._exchanges]
        work = _closing(closing, lambda inbox: serve_experts(instance, loader, ports, inbox))
        return member(instance_id, ports[0].wake, work)

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
