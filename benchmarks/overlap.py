"""What it saves to compute the shared expert while the exchange is in flight.

    python -m benchmarks.overlap [--json FILE.json] [--rates 0.2 1]

Two attention and two expert instances on two hosts (network namespaces, needs root). Each attention
instance computes for a given time (a matrix product, repeated) either before `dispatch`, or between
`dispatch` and `combine` as the engine does; both take turns, exchange by exchange. `saved_ms` is
the difference; what is more than the computation is noise. Experts answer at once.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import torch
from benchmarks.exchange import Order, first_answer, live
from benchmarks.exchange_adaptive import layout_of
from benchmarks.support.hosts import HostsUnavailable, Link, network
from benchmarks.support.report import machine_facts, print_table, write_json

from janus_moe.transport import AttentionPort

SHAPE = "2A+2E"
LAYERS = 20


class TimedOrder(Order, frozen=True):
    """compute_s: of each layer."""

    compute_s: float


def drive(port: AttentionPort, order: TimedOrder) -> list[dict[str, Any]]:
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
    layout = msgspec.structs.replace(layout, plan="2pc-sharded")
    with network(1 + max(layout.topology.nodes), Link(gbps)) as hosts:
        rows = first_answer(
            "benchmarks.overlap",
            layout,
            list(hosts),
            lambda instance, meeting, bind: TimedOrder(
                layout,
                instance,
                meeting,
                bind,
                tuple(options.tokens),
                options.steps,
                options.compute_ms / 1e3,
            ),
        )
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
        live(msgspec.json.decode(options.order, type=TimedOrder), drive)
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
