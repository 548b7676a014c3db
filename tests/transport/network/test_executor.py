"""The executor carries out every plan over every channel and gives the plain sum, bit for bit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.transport.exchange_plans.interpreter import demands, topologies
from tests.transport.exchange_plans.message_counts import count
from tests.transport.exchange_plans.test_plans import needed, plain_sum
from tests.transport.host_memory.host_peers_of_threads import met
from tests.transport.network.local_network import LocalNetwork
from torch import Tensor

from janus_moe.errors import ExchangeClosed, ExchangeError, ExchangeTimeout, PeerLost
from janus_moe.spec import EXCHANGE_PLANS, ExchangePlanName, InstanceId, Membership
from janus_moe.transport.base import ReplyMetadata, Ticket
from janus_moe.transport.exchange_plans import (
    EveryRow,
    ExchangePlan,
    RoutedRows,
    RowDemand,
    Topology,
)
from janus_moe.transport.exchange_plans.program import RowBytes
from janus_moe.transport.host_memory.host_peers import HostPeers, NoHostPeers
from janus_moe.transport.network.channel import Channel
from janus_moe.transport.network.executor import BoundProgram, Executor, Record
from janus_moe.transport.network.gloo import GlooChannel
from janus_moe.transport.network.message_buffers import RowFormat, pack_metadata, unpack_metadata
from janus_moe.transport.network.rendezvous import MemoryRendezvous

WIDTH = 3
HOST = "127.0.0.1"


@contextmanager
def channels(backend: str, num_ranks: int) -> Iterator[list[Channel]]:
    made: list[Channel]
    if backend == "local":
        network = LocalNetwork(num_ranks)
        made = [network.channel(rank) for rank in range(num_ranks)]
    else:
        rendezvous = MemoryRendezvous()
        with ThreadPoolExecutor(num_ranks) as threads:
            joins = [
                threads.submit(GlooChannel, rank, num_ranks, rendezvous, HOST, 20.0)
                for rank in range(num_ranks)
            ]
            made = [join.result(30) for join in joins]
    try:
        yield made
    finally:
        for channel in made:
            channel.abort()


class Node:
    """One instance: an executor with its programs of one exchange, run `layers` times."""

    def __init__(self, executor: Executor, exchange: ExchangePlan, rank: int) -> None:
        self.executor = executor
        self.exchange = exchange
        self.rank = rank
        self.dispatch = executor.bind(exchange.dispatch(rank))
        self.reply = executor.bind(exchange.reply(rank))

    def live(self, hidden: Tensor, layers: int) -> list[tuple[Tensor, tuple[ReplyMetadata, ...]]]:
        """What the instance got: batches or results."""
        topology = self.exchange.batch.topology
        if self.rank < topology.num_attention_instances:
            return [self._attention(hidden, layer) for layer in range(layers)]
        return [self._expert(hidden, layer) for layer in range(layers)]

    def _attention(self, hidden: Tensor, layer: int) -> tuple[Tensor, tuple[ReplyMetadata, ...]]:
        topology, tokens = self.exchange.batch.topology, self.exchange.batch.demand.tokens
        start = sum(tokens[: self.rank])
        rows = hidden[start : start + tokens[self.rank]] + layer
        result = torch.full_like(rows, float("nan"))
        metadata_words = [0] * (3 * topology.num_expert_instances)
        self._run(self.dispatch, layer, {"input": rows}, metadata_words)
        self._run(self.reply, layer, {"result": result}, metadata_words)
        return result.cpu(), unpack_metadata(metadata_words)

    def _expert(self, hidden: Tensor, layer: int) -> tuple[Tensor, tuple[ReplyMetadata, ...]]:
        topology, demand = self.exchange.batch.topology, self.exchange.batch.demand
        expert = self.rank - topology.num_attention_instances
        batch = hidden.new_full((len(needed(demand, expert)), WIDTH), float("nan"))
        metadata_words = [0] * (3 * topology.num_expert_instances)
        self._run(self.dispatch, layer, {"batch": batch}, metadata_words)
        metadata_words[3 * expert : 3 * expert + 3] = pack_metadata(
            (ReplyMetadata(7, expert, layer),)
        )
        self._run(self.reply, layer, {"partial": partial_sums(batch, expert)}, metadata_words)
        return batch.cpu(), ()

    def _run(
        self, program: BoundProgram, layer: int, local: dict[str, Tensor], metadata_words: list[int]
    ) -> None:
        self.executor.post(program)
        self.executor.run(program, Ticket(1, 2, layer), local, metadata_words)
        self.executor.settle()


def members_of(topology: Topology) -> tuple[InstanceId, ...]:
    return Membership.on_hosts(topology.attention_nodes, topology.expert_nodes).instances


def partial_sums(batch: Tensor, expert: int) -> Tensor:
    return torch.sin(batch * (expert + 1.7))


def check_an_exchange(
    backend: str,
    plan: ExchangePlanName,
    topology: Topology,
    demand: RowDemand,
    layers: int = 2,
    device: str = "cpu",
) -> None:
    exchange = ExchangePlan(plan, topology, demand)
    hidden = torch.randn(sum(demand.tokens), WIDTH, generator=torch.Generator().manual_seed(0))
    format_ = RowFormat(
        max(1, len(hidden)),
        WIDTH,
        topology.num_expert_instances,
        torch.float32,
        device=torch.device(device),
    )
    seen: list[tuple[int, str, int]] = []
    ranks = range(topology.num_ranks)
    with ExitStack() as stack:
        ends = stack.enter_context(channels("gloo" if backend == "gloo" else "local", len(ranks)))
        host_peers: Sequence[HostPeers | NoHostPeers] = [NoHostPeers()] * len(ranks)
        if backend == "host memory":
            host_peers = stack.enter_context(met(topology))
        threads = stack.enter_context(ThreadPoolExecutor(len(ranks)))
        lives = []
        for rank in ranks:
            record = recorder(seen, rank)
            executor = Executor(
                rank, members_of(topology), ends[rank], format_, 20.0, record, host_peers[rank]
            )
            node = Node(executor, exchange, rank)
            lives.append(threads.submit(node.live, hidden.to(device), layers))
        histories = [life.result(30) for life in lives]
    for layer in range(layers):
        wanted = [needed(demand, expert) for expert in range(topology.num_expert_instances)]
        batches = [(hidden + layer)[rows] for rows in wanted]
        got = [history[layer] for history in histories]
        for expert, batch in enumerate(batches):
            assert torch.equal(got[topology.expert_rank(expert)][0], batch)
        partials = [partial_sums(batch, expert).numpy() for expert, batch in enumerate(batches)]
        results = np.concatenate(
            [got[i][0].numpy() for i in range(topology.num_attention_instances)]
        )
        assert np.array_equal(results, plain_sum(topology, demand, partials))
        if isinstance(demand, EveryRow):
            metadata_words = tuple(
                ReplyMetadata(7, expert, layer) for expert in range(topology.num_expert_instances)
            )
            assert all(got[i][1] == metadata_words for i, n in enumerate(demand.tokens) if n)
    row_bytes = RowBytes(4 * WIDTH, 4 * WIDTH)
    there = count(topology, exchange.dispatches, "dispatch", row_bytes)
    back = count(topology, exchange.replies, "reply", row_bytes)
    for way in ("send", "receive"):
        sizes = [size for _, direction, size in seen if direction == way]
        assert len(sizes) == layers * (there.messages + back.messages)
        assert sum(sizes) == layers * (there.bytes + back.bytes)


def recorder(seen: list[tuple[int, str, int]], rank: int) -> Record:
    def record(
        peer: int, direction: str, num_bytes: int, stage: str, start_ns: int, end_ns: int
    ) -> None:
        assert peer != rank and start_ns <= end_ns
        seen.append((peer, direction, num_bytes))

    return record


@pytest.mark.parametrize("plan", EXCHANGE_PLANS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_plan_among_threads_gives_the_plain_sum(
    plan: ExchangePlanName, data: st.DataObject
) -> None:
    topology = data.draw(topologies())
    check_an_exchange("local", plan, topology, data.draw(demands(topology, max_tokens=40)))


@pytest.mark.parametrize("plan", EXCHANGE_PLANS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_plan_in_memory_of_host_peers_gives_the_plain_sum(
    plan: ExchangePlanName, data: st.DataObject
) -> None:
    """Between nodes through channels, within nodes in memory that instances share."""
    topology = data.draw(topologies())
    check_an_exchange("host memory", plan, topology, data.draw(demands(topology, max_tokens=40)), 3)


@pytest.mark.parametrize("plan", EXCHANGE_PLANS)
def test_every_plan_over_gloo_gives_the_plain_sum(plan: ExchangePlanName) -> None:
    topology = Topology((0, 0, 1), (1, 2, 2, 3))
    check_an_exchange("gloo", plan, topology, EveryRow((3, 40, 5)), layers=20)


@pytest.mark.parametrize("plan", EXCHANGE_PLANS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_moves_of_tensors_equal_those_of_arrays(
    plan: ExchangePlanName, data: st.DataObject
) -> None:
    """What runs on devices, tried on the CPU."""
    topology = data.draw(topologies())
    demand = data.draw(demands(topology, max_tokens=20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowFormat, "array", lambda self, rows: rows)
        check_an_exchange("local", plan, topology, demand)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("plan", EXCHANGE_PLANS)
@pytest.mark.parametrize("agate", (False, True))
def test_every_plan_runs_on_device_tensors(plan: ExchangePlanName, agate: bool) -> None:
    topology = Topology((0, 0, 1), (1, 2, 2, 3))
    demand: RowDemand = EveryRow((3, 40, 5))
    if agate:
        generator = np.random.default_rng(0)
        demand = RoutedRows.of([generator.integers(0, 4, (n, 2)) for n in (3, 40, 5)])
    check_an_exchange("local", plan, topology, demand, device="cuda")


def test_a_late_peer_is_named_with_stage_step_and_layer() -> None:
    topology = Topology((0,), (1,))
    exchange = ExchangePlan("1pc", topology, EveryRow((2,)))
    with channels("local", 2) as ends:
        executor = Executor(
            1, members_of(topology), ends[1], RowFormat(2, WIDTH, 1, torch.float32), 0.05
        )
        program = executor.bind(exchange.dispatch(1))
        executor.post(program)
        with pytest.raises(ExchangeTimeout, match=r"^attention 0 did.*stage send, step 4, layer 9"):
            executor.run(program, Ticket(1, 4, 9), {"batch": torch.empty(2, WIDTH)}, [0] * 3)


def test_a_message_of_another_exchange_is_refused() -> None:
    topology = Topology((0,), (1,))
    exchange = ExchangePlan("1pc", topology, EveryRow((2,)))
    format_ = RowFormat(2, WIDTH, 1, torch.float32)
    with channels("local", 2) as ends:
        sender = Executor(0, members_of(topology), ends[0], format_, 5.0)
        there = sender.bind(exchange.dispatch(0))
        sender.run(there, Ticket(1, 4, 8), {"input": torch.zeros(2, WIDTH)}, [0] * 3)
        receiver = Executor(1, members_of(topology), ends[1], format_, 5.0)
        program = receiver.bind(exchange.dispatch(1))
        receiver.post(program)
        with pytest.raises(ExchangeError, match=r"2 rows of .*layer=9.*rank 0.* 8, 2\]"):
            receiver.run(program, Ticket(1, 4, 9), {"batch": torch.empty(2, WIDTH)}, [0] * 3)


@pytest.mark.parametrize("backend", ("local", "gloo"))
def test_aborting_a_channel_ends_its_waits_and_those_of_its_peers(backend: str) -> None:
    topology = Topology((0,), (1,))
    exchange = ExchangePlan("1pc", topology, EveryRow((2,)))
    with channels(backend, 2) as ends, ThreadPoolExecutor(2) as threads:
        runs = []
        for rank in range(2):
            executor = Executor(
                rank, members_of(topology), ends[rank], RowFormat(2, WIDTH, 1, torch.float32)
            )
            program = executor.bind((exchange.reply, exchange.dispatch)[rank](rank))
            executor.post(program)
            local = {"batch": torch.empty(2, WIDTH), "result": torch.empty(2, WIDTH)}
            runs.append(threads.submit(executor.run, program, Ticket(0, 0, 0), local, [0] * 3))
        time.sleep(0.05)
        ends[0].abort()
        with pytest.raises(ExchangeClosed):
            runs[0].result(10)
        with pytest.raises(PeerLost, match="attention 0 is gone"):
            runs[1].result(10)
