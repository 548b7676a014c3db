"""What it saves to compute the shared expert while the exchange is in flight.

    python -m benchmarks.overlap [--json FILE.json] [--rates 0.2 1 10]

Two attention and two expert instances on two hosts (network namespaces, needs root). Each attention
instance computes for a given time (a matrix product, repeated) either before `dispatch`, or between
`dispatch` and `combine` as the engine does; both take turns, exchange by exchange. `saved_ms` is
the difference; what is more than the computation is noise. Experts answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import torch
from benchmarks.support.exchange_runs import first_answer, layout_of
from benchmarks.support.hosts import Link, network
from benchmarks.support.program import Result, flag, main

from janus_moe.errors import ExchangeClosed
from janus_moe.spec import InstanceId
from janus_moe.transport import AttentionPort, ExchangeLayout, ReplyMetadata, WaitRule
from janus_moe.transport.network.exchange import open_network
from janus_moe.transport.network.rendezvous import FolderRendezvous

SHAPE = "2A+2E"
LAYERS = 20
RULE = WaitRule(timeout_s=60.0)
NOTE = ReplyMetadata(routing_digest=1, activated=2)


class Order(msgspec.Struct, frozen=True):
    """What the process of one instance is told.

    meeting: folder in which the instances find each other.
    tokens: of each attention instance, one batch size after the other.
    compute_s: seconds of computation in each layer.
    """

    layout: ExchangeLayout
    instance: InstanceId
    meeting: str
    bind: str
    tokens: tuple[int, ...]
    steps: int
    compute_s: float


def measure(options: argparse.Namespace) -> Result:
    rows = [row for gbps in options.rates for row in measure_link(gbps, options)]
    return {"shape": SHAPE, "rows": rows}


def measure_link(gbps: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    layout = layout_of(SHAPE, 2 * max(options.tokens))
    layout = msgspec.structs.replace(layout, plan="2pc-sharded")

    def order(instance: InstanceId, meeting: str, bind: str) -> Order:
        tokens, compute_s = tuple(options.tokens), options.compute_ms / 1e3
        return Order(layout, instance, meeting, bind, tokens, options.steps, compute_s)

    with network(1 + max(layout.topology.nodes), Link(gbps)) as hosts:
        rows = first_answer("benchmarks.overlap", layout, hosts, order)
    return [{"gbps": gbps, **row} for row in rows]


def live() -> None:
    """Runs one instance until the last layer; an attention instance prints its times."""
    torch.set_num_threads(1)
    order = msgspec.json.decode(sys.argv[1], type=Order)
    meeting = FolderRendezvous(Path(order.meeting))
    end = open_network(order.layout, order.instance, meeting, order.bind)
    rank = order.layout.membership.rank(order.instance)
    with contextlib.suppress(ExchangeClosed):
        if order.instance.pool == "attention":
            print(json.dumps(drive(end.attention_port(rank, RULE), order)))
            time.sleep(0.5)  # the others end with the last layer too
        else:
            port = end.expert_port(rank, RULE)
            while True:
                work = port.accept()
                if work is not None:
                    port.reply(work, work.hidden.float(), NOTE)
    end.close()


def drive(port: AttentionPort, order: Order) -> list[dict[str, Any]]:
    """Times layers of both kinds in turns, by tokens; the first step warms up."""
    weight = torch.randn(256, 256)
    products = products_in(order.compute_s, weight)
    rows = []
    for tokens in order.tokens:
        hidden = torch.zeros(tokens, order.layout.hidden_size, dtype=torch.bfloat16)
        seconds: tuple[list[float], list[float]] = ([], [])
        computing: list[float] = []
        for step in range(order.steps):
            port.begin_step(tokens)
            for layer in range(LAYERS):
                during = layer % 2
                started = time.perf_counter()
                if not during:
                    compute(weight, products)
                    computing.append(time.perf_counter() - started)
                ticket = port.dispatch(layer, hidden)
                if during:
                    compute(weight, products)
                port.combine(ticket)
                if step and layer > 1:
                    seconds[during].append(time.perf_counter() - started)
        before, during_it = (1e3 * median(found) for found in seconds)
        rows.append(
            {
                "tokens": tokens * order.layout.shape.attention,
                "compute_ms": 1e3 * median(computing),
                "before_ms": before,
                "during_ms": during_it,
                "saved_ms": before - during_it,
            }
        )
    return rows


def products_in(seconds: float, weight: torch.Tensor) -> int:
    """Returns how many products take so long here, at best."""
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        compute(weight, 10)
        best = min(best, (time.perf_counter() - started) / 10)
    return max(1, round(seconds / best))


def compute(weight: torch.Tensor, products: int) -> None:
    for _ in range(products):
        torch.mm(weight, weight)


if __name__ == "__main__":
    main(
        __doc__,
        measure,
        flag("--rates", type=float, nargs="+", default=[0.2, 1.0, 10.0], help="Gb/s"),
        flag("--tokens", type=int, nargs="+", default=[8, 32, 128], help="per instance"),
        flag("--compute-ms", type=float, default=2.0, help="of each layer"),
        flag("--steps", type=int, default=8),
    )
