"""The exchange alone with gating on either side, in one phase or two, measured.

The communication part of the paper's figure 12, between network namespaces (needs root). AGate
sends a row only where one of its k experts is (uniform routing), packed; its metadata (3 % of the
bytes) and the time to compute its programs are left out, in its favour. EGate sends every row
everywhere. All variants take turns in one run; times are lower quartiles at attention instance 0.
What experts and schedulers cost is not known here.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from benchmarks.support.exchange_runs import first_answer, layout_of
from benchmarks.support.hosts import Link, network

from janus_moe.profiling.exchange_times import distinct_plans, spread
from janus_moe.spec import ExchangePlanName, InstanceId
from janus_moe.torch_dtypes import TORCH_DTYPES
from janus_moe.tracing.durations import lower_quartile
from janus_moe.transport import ExchangeLayout, Ticket
from janus_moe.transport.base import global_rank
from janus_moe.transport.exchange_plans import EveryRow, ExchangePlan, RoutedRows, RowDemand
from janus_moe.transport.host_memory.connecting import connect_host_peers
from janus_moe.transport.network.executor import BoundProgram, Executor
from janus_moe.transport.network.gloo import GlooChannel
from janus_moe.transport.network.message_buffers import RowFormat
from janus_moe.transport.network.rendezvous import FolderRendezvous

TOP_K, ROUTINGS = 8, 3
LEAST_ROUNDS, MOST_ROUNDS = 5, 60
TIMEOUT_S = 120.0


class Order(msgspec.Struct, frozen=True):
    """What the process of one instance is told.

    meeting: folder in which the instances find each other.
    batches: tokens of all attention instances, one size after the other.
    budget_s: seconds for each of them.
    """

    layout: ExchangeLayout
    instance: InstanceId
    meeting: str
    bind: str
    batches: tuple[int, ...]
    budget_s: float


class Node:
    """An instance that runs the programs of any plan and gating."""

    def __init__(self, order: Order) -> None:
        layout, self.topology = order.layout, order.layout.topology
        self.rank = global_rank(layout.membership, order.instance)
        self.meeting = FolderRendezvous(Path(order.meeting))
        self.channel = GlooChannel(
            self.rank, self.topology.num_ranks, self.meeting, order.bind, TIMEOUT_S
        )
        dtype = TORCH_DTYPES[layout.dtype]
        rows = layout.shape.attention * layout.max_tokens
        format_ = RowFormat(rows, layout.hidden_size, layout.shape.expert, dtype)
        self.near = connect_host_peers(
            self.rank,
            self.topology.host_peers(self.rank),
            self.topology.num_ranks,
            self.meeting,
            TIMEOUT_S,
        )
        self.executor = Executor(
            self.rank,
            layout.membership.instances,
            self.channel,
            format_,
            TIMEOUT_S,
            host_peers=self.near,
        )
        self.wide = torch.zeros(rows, layout.hidden_size)
        self.narrow = torch.zeros(rows, layout.hidden_size, dtype=dtype)
        self.metadata_words = [0] * (3 * layout.shape.expert)
        self.step = 0

    def programs(
        self, plan: ExchangePlanName, demand: RowDemand
    ) -> tuple[BoundProgram, BoundProgram]:
        exchange = ExchangePlan(plan, self.topology, demand)
        dispatch, reply = exchange.dispatch(self.rank), exchange.reply(self.rank)
        return self.executor.bind(dispatch), self.executor.bind(reply)

    def exchange(self, programs: Sequence[BoundProgram]) -> float:
        self.step += 1
        ticket = Ticket(0, self.step, 0)
        local = {
            "input": self.narrow,
            "batch": self.narrow,
            "partial": self.wide,
            "result": self.wide,
        }
        started = time.perf_counter()
        for program in programs:
            self.executor.post(program)
        for program in programs:
            self.executor.run(program, ticket, local, self.metadata_words)
            self.executor.settle()
        return time.perf_counter() - started


def live() -> None:
    """Runs one instance until all have measured; attention instance 0 prints its times."""
    torch.set_num_threads(1)
    order = msgspec.json.decode(sys.argv[1], type=Order)
    node, rows = Node(order), []
    for batch in order.batches:
        tokens = spread(batch, order.layout.shape.attention)
        draw = np.random.default_rng(batch)
        variants: dict[tuple[ExchangePlanName, str], list[tuple[BoundProgram, BoundProgram]]] = {}
        for plan in distinct_plans(order.layout):
            variants[plan, "egate"] = [node.programs(plan, EveryRow(tokens))]
        for _ in range(ROUTINGS):
            routing = draw.integers(0, order.layout.shape.expert, (batch, TOP_K))
            for plan in distinct_plans(order.layout):
                programs = node.programs(plan, RoutedRows(tokens, routing))
                variants.setdefault((plan, "agate"), []).append(programs)
        started = 0.0
        for _ in range(2):
            started = time.perf_counter()
            for choices in variants.values():
                node.exchange(choices[0])
        took = time.perf_counter() - started
        rounds = min(max(int(order.budget_s / took), LEAST_ROUNDS), MOST_ROUNDS)
        if node.rank == 0:
            node.meeting.put(f"rounds {batch}", str(rounds).encode())
        rounds = int(node.meeting.get(f"rounds {batch}", TIMEOUT_S))
        seconds: dict[tuple[ExchangePlanName, str], list[float]] = {key: [] for key in variants}
        for number in range(rounds):
            for key, choices in variants.items():
                seconds[key].append(node.exchange(choices[number % len(choices)]))
        for (plan, gating), times in seconds.items():
            quartile = round(1e6 * lower_quartile(times))
            rows.append({"tokens": batch, "plan": plan, "gating": gating, "us": quartile})
    if node.rank == 0:
        print(json.dumps(rows), flush=True)
    for rank in range(node.topology.num_ranks):  # none leaves before all are done
        if rank == node.rank:
            node.meeting.put(f"done {rank}", b"")
        node.meeting.get(f"done {rank}", TIMEOUT_S)
    node.channel.abort()
    node.near.close()


def measure(shape: str, link: Link, batches: Sequence[int], budget_s: float) -> list[Any]:
    """Returns rows of tokens, plan, gating and microseconds.

    shape: see `layout_of`.
    batches: tokens of all attention instances.
    budget_s: seconds for each of them.
    """
    layout = layout_of(shape, max(batches))

    def order(instance: InstanceId, meeting: str, bind: str) -> Order:
        return Order(layout, instance, meeting, bind, tuple(batches), budget_s)

    with network(1 + max(layout.topology.nodes), link) as hosts:
        rows: list[Any] = first_answer("paper.gating_exchange", layout, hosts, order)
    return rows
