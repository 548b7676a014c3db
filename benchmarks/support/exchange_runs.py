"""Exchanges without compute among processes on hosts of their own: layouts, traffic, processes.

What is exchanged and timed is not known here.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from benchmarks.support.hosts import Link, Network, network

from janus_moe.profiling.exchange_run import orders_of, run_orders
from janus_moe.profiling.exchange_times import ExchangeTimes
from janus_moe.spec import InstanceId, Membership
from janus_moe.transport import ExchangeLayout

HIDDEN, DTYPE = 1024, "bfloat16"
LIMIT_S, GRACE_S = 1800.0, 30.0

_SINK = """
import socket, threading
listener = socket.create_server(("", 5002))
print("listening", flush=True)
while True:
    peer = listener.accept()[0]
    threading.Thread(target=lambda: [None for _ in iter(lambda: peer.recv(1 << 16), b"")]).start()
"""
_SOURCE = """
import socket, sys
peer = socket.create_connection((sys.argv[1], 5002))
while True:
    peer.sendall(bytes(1 << 16))
"""


def layout_of(shape: str, max_batch: int) -> ExchangeLayout:
    """Makes a layout of `2A+2E`: hosts in order, each with instances of one pool.

    max_batch: tokens of all attention instances.
    """
    pools: dict[str, list[int]] = {"A": [], "E": []}
    for node, part in enumerate(shape.split("+")):
        found = re.fullmatch(r"(\d+)([AE])", part)
        if found is None:
            raise SystemExit(f"{part!r} in {shape!r} is not like 2A or 4E")
        pools[found[2]] += [node] * int(found[1])
    return ExchangeLayout(
        membership=Membership.on_hosts(tuple(pools["A"]), tuple(pools["E"])),
        hidden_size=HIDDEN,
        dtype=DTYPE,  # type: ignore[arg-type]
        max_tokens=-(-max_batch // len(pools["A"])),
    )


@contextlib.contextmanager
def traffic(hosts: Network, num_connections: int) -> Iterator[None]:
    """Other TCP connections send without end from the first host to the second."""
    if num_connections:
        sink = hosts[1].popen(
            [sys.executable, "-c", _SINK], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        sink.stdout.readline()
        for _ in range(num_connections):
            source = [sys.executable, "-c", _SOURCE, hosts[1].address]
            hosts[0].popen(source, stderr=subprocess.DEVNULL)
    yield


def compare_plans(
    layout: ExchangeLayout,
    link: Link,
    batches: Sequence[int],
    profile: Sequence[int],
    budget_s: float,
    connections: int = 0,
    repeat: Literal["once", "twice"] = "twice",
) -> ExchangeTimes:
    """Profiles every plan, then times all plans and `auto` in turns, on hosts with this link.

    batches, profile: tokens of all attention instances, compared and profiled.
    budget_s: seconds for each batch size.
    connections: other TCP connections on the first host's link.
    """
    told = {"batches": tuple(profile), "compared": tuple(batches), "budget_s": budget_s}
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(network(1 + max(layout.membership.expert_hosts), link))
        stack.enter_context(traffic(hosts, connections))
        meeting = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        orders = [
            (order, host.popen)
            for node, host in enumerate(hosts)
            for order in orders_of(layout, node, meeting, host.address, repeat=repeat, **told)
        ]
        times = run_orders(orders, LIMIT_S)
    assert times is not None  # attention instance 0 is among them
    return times


def first_answer(
    module: str,
    layout: ExchangeLayout,
    hosts: Network,
    order: Callable[[InstanceId, str, str], Any],
) -> Any:
    """Returns the JSON that the attention instance of rank 0 prints; each instance has a process.

    module: its `live()` is one instance; the order is its first argument, as JSON.
    order: (instance, folder to meet in, address to bind to) -> what the process is told.
    """
    entry = f"from {module} import live; live()"
    with tempfile.TemporaryDirectory() as meeting, contextlib.ExitStack() as stack:
        processes: list[subprocess.Popen[Any]] = []
        for instance, node in zip(layout.membership.instances, layout.topology.nodes, strict=True):
            told = msgspec.json.encode(order(instance, meeting, hosts[node].address)).decode()
            command = [sys.executable, "-c", entry, told]
            process = hosts[node].popen(command, stdout=subprocess.PIPE, text=True)
            stack.callback(process.wait, GRACE_S)
            stack.callback(process.kill)
            processes.append(process)
        return json.loads(processes[0].communicate(timeout=LIMIT_S)[0])
