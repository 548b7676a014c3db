"""The exchange alone, without compute, among processes: every plan, by nodes, tokens and link.

    python -m benchmarks.exchange [--json FILE.json] [--attention 0 0 --experts 1 1] [--rate-gbps 1]

Experts answer with what they got. With --rate-gbps, every node is a network namespace with a link
of that rate in both directions (needs root); otherwise all talk over loopback. `shm` is measured
beside them where there is no such limit. All variants take turns, round by round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from benchmarks.support.hosts import Host, Link, network
from benchmarks.support.report import machine_facts, print_table, write_json
from benchmarks.transport import measure_shm

from janus_moe.errors import ExchangeClosed
from janus_moe.spec import EXCHANGE_PLANS, ExchangePlanName, InstanceId, PoolShape
from janus_moe.transport import (
    AttentionPort,
    ExchangeLayout,
    GlooExchange,
    ReplyMetadata,
    WaitRule,
)
from janus_moe.transport.exchange_plans.counts import RowBytes, closed_form
from janus_moe.transport.network.rendezvous import FolderRendezvous

LAYERS = 8
RULE = WaitRule(timeout_s=60.0)
NOTE = ReplyMetadata(routing_digest=1, activated=2)


class Order(msgspec.Struct, frozen=True):
    """What one instance is told. tokens: per attention instance, one after the other."""

    layout: ExchangeLayout
    instance: InstanceId
    meeting: str
    bind: str
    tokens: tuple[int, ...]
    steps: int


def live(order: Order, drive: Callable[[AttentionPort, Any], object]) -> None:
    """One instance until the last layer. drive: what attention instances do, and print."""
    torch.set_num_threads(1)
    meeting = FolderRendezvous(Path(order.meeting))
    end = GlooExchange(order.layout, order.instance, meeting, order.bind)
    index = order.instance.number
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


def drive(port: AttentionPort, order: Order) -> dict[int, list[float]]:
    """Seconds of every exchange, by tokens; the first third of the steps warms up."""
    seconds: dict[int, list[float]] = {tokens: [] for tokens in order.tokens}
    for tokens in order.tokens:
        hidden = torch.zeros(tokens, order.layout.hidden_size)
        for step in range(order.steps):
            port.begin_step(tokens)
            for layer in range(LAYERS):
                started = time.perf_counter()
                port.combine(port.dispatch(layer, hidden))
                if layer and step >= order.steps // 3:  # layer 0 also waits for the peers' step
                    seconds[tokens].append(time.perf_counter() - started)
    return seconds


def measure(
    layout: ExchangeLayout, hosts: list[Host], tokens: tuple[int, ...], steps: int
) -> dict[int, list[float]]:
    """Of attention instance 0, which sees the slowest of all."""
    said = first_answer(
        "benchmarks.exchange",
        layout,
        hosts,
        lambda instance, meeting, bind: Order(layout, instance, meeting, bind, tokens, steps),
    )
    return {int(count): seconds for count, seconds in said.items()}


def first_answer(
    module: str,
    layout: ExchangeLayout,
    hosts: list[Host],
    order: Callable[[InstanceId, str, str], Order],
) -> Any:
    """What attention instance 0 prints; one process `module --order ...` per instance, none of
    which stays. order: of (instance, folder to meet in, address to bind to)."""
    shape = layout.shape
    instances = [InstanceId(pool="attention", number=i) for i in range(shape.attention)]
    instances += [InstanceId(pool="expert", number=e) for e in range(shape.expert)]
    with tempfile.TemporaryDirectory() as meeting, contextlib.ExitStack() as stack:
        processes: list[Any] = []
        for instance, node in zip(instances, layout.topology.nodes, strict=True):
            bind = hosts[node].address if hosts else "127.0.0.1"
            told = msgspec.json.encode(order(instance, meeting, bind)).decode()
            command = [sys.executable, "-m", module, "--order", told]
            start = hosts[node].popen if hosts else subprocess.Popen
            process = start(command, stdout=subprocess.PIPE, text=True)
            stack.callback(process.wait, 30)
            stack.callback(process.kill)
            processes.append(process)
        return json.loads(processes[0].communicate(timeout=600)[0])


@contextlib.contextmanager
def nodes_of(options: argparse.Namespace) -> Iterator[list[Host]]:
    if options.rate_gbps is None:
        yield []
        return
    number = 1 + max(*options.attention, *options.experts)
    with network(number, Link(rate_gbps=options.rate_gbps)) as hosts:
        yield list(hosts)


def measure_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    shape = PoolShape(attention=len(options.attention), expert=len(options.experts))
    seconds: dict[tuple[str, int], list[float]] = {}
    plans: list[ExchangePlanName] = options.plans
    layouts: dict[str, ExchangeLayout] = {
        plan: ExchangeLayout(
            shape=shape,
            hidden_size=options.hidden,
            dtype="float32",
            max_tokens=max(options.tokens),
            attention_nodes=tuple(options.attention),
            expert_nodes=tuple(options.experts),
            plan=plan,
        )
        for plan in plans
    }
    with nodes_of(options) as hosts:
        for _ in range(options.rounds):
            for plan in plans:
                found = measure(layouts[plan], hosts, tuple(options.tokens), options.steps)
                for tokens, times in found.items():
                    seconds.setdefault((plan, tokens), []).extend(times)
            if options.rate_gbps is None and options.shm:
                for tokens, times in measure_shm(shape, options.steps, RULE).items():
                    seconds.setdefault(("shm", tokens), []).extend(times)
    rows = []
    for (name, tokens), times in sorted(seconds.items(), key=lambda item: item[0][1]):
        ordered = sorted(times)
        row = {
            "exchange": name,
            "tokens": tokens,
            "p10_us": round(1e6 * ordered[len(ordered) // 10]),
            "median_us": round(1e6 * statistics.median(ordered)),
            "p90_us": round(1e6 * ordered[9 * len(ordered) // 10]),
            "inter_kB": 0,
        }
        if name in layouts:
            row_bytes = RowBytes(4 * options.hidden, 4 * options.hidden)
            topology = layouts[name].topology
            plan = cast(ExchangePlanName, layouts[name].plan)
            both = closed_form(plan, topology, (tokens,) * shape.attention, row_bytes)
            row["inter_kB"] = sum(counts.inter_bytes for counts in both) // 1000
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="JSON with machine, commit and all figures")
    parser.add_argument("--attention", type=int, nargs="+", default=[0, 0], help="node of each")
    parser.add_argument("--experts", type=int, nargs="+", default=[1, 1], help="node of each")
    parser.add_argument("--plans", nargs="+", choices=EXCHANGE_PLANS, default=list(EXCHANGE_PLANS))
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--rate-gbps", type=float, help="of every node's link")
    parser.add_argument("--shm", action="store_true", help="measure shm too, on one host")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help="steps per token count")
    parser.add_argument("--order", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.order:
        live(msgspec.json.decode(options.order, type=Order), drive)
        return
    rows = measure_all(options)
    print_table(rows)
    if options.json:
        told = {key: value for key, value in vars(options).items() if key not in ("json", "order")}
        facts = {"benchmark": "exchange", **told, "machine": machine_facts()}
        write_json(options.json, {**facts, "rows": rows})


if __name__ == "__main__":
    main()
