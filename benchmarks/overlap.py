"""What it saves to compute the shared expert while the exchange is in flight.

    python -m benchmarks.overlap [--json FILE.json] [--rates 0.2 1]

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
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import torch
from benchmarks.common import machine_facts, print_table, write_json
from benchmarks.exchange import NOTE, RULE
from benchmarks.exchange_adaptive import layout_of
from benchmarks.hosts import HostsUnavailable, Link, network

from janus_moe.errors import ExchangeClosed
from janus_moe.spec import InstanceId
from janus_moe.transport import AttentionPort, DistExchange, DistLayout
from janus_moe.transport.rendezvous import FolderRendezvous

SHAPE = "2A+2E"
LAYERS = 20


class Order(msgspec.Struct, frozen=True):
    """What one instance is told. tokens: per attention instance. compute_s: of each layer."""

    layout: DistLayout
    instance: InstanceId
    meeting: str
    bind: str
    tokens: tuple[int, ...]
    steps: int
    compute_s: float


def live(order: Order) -> None:
    torch.set_num_threads(1)
    end = DistExchange(
        order.layout, order.instance, FolderRendezvous(Path(order.meeting)), order.bind
    )
    index = order.instance.index
    with contextlib.suppress(ExchangeClosed):
        if order.instance.pool == "attention":
            print(json.dumps(drive(end.attention_port(index, RULE), order)))
            time.sleep(0.5)  # the others end with the last layer too
        else:
            port = end.expert_port(index, RULE)
            while True:
                work = port.accept()
                if work is not None:
                    port.reply(work, work.hidden.float(), NOTE)
    end.close()


def drive(port: AttentionPort, order: Order) -> list[dict[str, Any]]:
    """Median milliseconds of a layer by tokens, for both orders; the first step warms up."""
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
    """How many products take so long here, at best."""
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        compute(weight, 10)
        best = min(best, (time.perf_counter() - started) / 10)
    return max(1, round(seconds / best))


def compute(weight: torch.Tensor, products: int) -> None:
    for _ in range(products):
        torch.mm(weight, weight)


def measure(gbps: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    layout = layout_of(SHAPE, 2 * max(options.tokens))
    instances = [InstanceId(pool="attention", index=i) for i in range(layout.shape.attention)]
    instances += [InstanceId(pool="expert", index=e) for e in range(layout.shape.expert)]
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(network(1 + max(layout.topology.nodes), Link(gbps)))
        meeting = stack.enter_context(tempfile.TemporaryDirectory())
        processes = []
        for instance, node in zip(instances, layout.topology.nodes, strict=True):
            order = Order(
                layout=msgspec.structs.replace(layout, plan="2pc-sharded"),
                instance=instance,
                meeting=meeting,
                bind=hosts[node].address,
                tokens=tuple(options.tokens),
                steps=options.steps,
                compute_s=options.compute_ms / 1e3,
            )
            told = msgspec.json.encode(order).decode()
            command = [sys.executable, "-m", "benchmarks.overlap", "--order", told]
            processes.append(hosts[node].popen(command, stdout=-1, text=True))
        rows = json.loads(processes[0].communicate(timeout=600)[0])
    return [{"gbps": gbps, **row} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="JSON with machine, commit and all figures")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.2, 1.0, 10.0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[8, 32, 128], help="per instance")
    parser.add_argument("--compute-ms", type=float, default=2.0, help="of each layer")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--order", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.order:
        live(msgspec.json.decode(options.order, type=Order))
        return
    rows: list[dict[str, Any]] = []
    for gbps in options.rates:
        try:
            rows += measure(gbps, options)
        except HostsUnavailable as error:
            raise SystemExit(f"benchmarks.overlap: {error}") from None
    print_table(rows)
    if options.json:
        facts = {"benchmark": "overlap", "shape": SHAPE, "machine": machine_facts()}
        write_json(options.json, {**facts, "rows": rows})


if __name__ == "__main__":
    main()
