"""A living worker opens, uses and closes exchange after exchange, each of another membership.

Instances are threads here, each with an end of its own. In one test a peer is a process that was
started by something else and lives through all exchanges; run as a program, this file is that peer.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from janus_moe.errors import ConfigError, ExchangeClosed, ExchangeTimeout, RoutingDivergence
from janus_moe.spec import InstanceId, Membership
from janus_moe.transport import (
    AttentionPort,
    Exchange,
    ExchangeLayout,
    ReplyMetadata,
    WaitRule,
    open_exchange,
)
from janus_moe.transport.network.rendezvous import (
    FolderRendezvous,
    MemoryRendezvous,
    NamespacedRendezvous,
    Rendezvous,
)

Transport = Literal["loopback", "shm", "gloo"]
HIDDEN = 8
TOKENS = 2
RULE = WaitRule(timeout_s=30.0)
SHAPES = ((1, 2), (2, 1), (3, 3), (1, 1), (2, 3))


def layout_of(generation: int) -> ExchangeLayout:
    """Another shape each time, with ids that are no ranks, on two hosts where that matters."""
    num_attention, num_expert = SHAPES[generation % len(SHAPES)]
    attention, expert = range(generation, generation + num_attention), range(num_expert)
    membership = Membership(
        generation=generation,
        attention=tuple(InstanceId(pool="attention", number=number) for number in attention),
        expert=tuple(InstanceId(pool="expert", number=generation + e) for e in expert),
        attention_hosts=(0,) * num_attention,
        expert_hosts=tuple(e % 2 for e in expert),
        placement_epoch=generation,
    )
    return ExchangeLayout(membership=membership, hidden_size=HIDDEN, dtype="float32", max_tokens=4)


def take_step(port: AttentionPort, layout: ExchangeLayout) -> None:
    """Every expert instance multiplies by its number plus 1."""
    port.begin_step(TOKENS)
    hidden = torch.rand(TOKENS, HIDDEN)
    ticket = port.dispatch(0, hidden)
    assert ticket.epoch == layout.membership.placement_epoch
    factor = sum(expert.number + 1 for expert in layout.membership.expert)
    torch.testing.assert_close(port.combine(ticket).hidden, hidden * factor)


def serve(exchange: Exchange, rank: int, number: int) -> None:
    port = exchange.expert_port(rank, RULE)
    with suppress(ExchangeClosed):
        while True:
            work = port.accept()
            if work is not None:
                port.reply(work, work.hidden * (number + 1), ReplyMetadata(0, 1))


class Running:
    """Ends of one exchange in threads of this process; experts serve at once."""

    def __init__(
        self,
        transport: Transport,
        layout: ExchangeLayout,
        rendezvous: Rendezvous,
        instances: Sequence[InstanceId],
        threads: ThreadPoolExecutor,
    ) -> None:
        self.layout = layout
        groups = [instances] if transport == "loopback" else [[one] for one in instances]
        self.ends = list(
            threads.map(
                lambda own: open_exchange(transport, layout, own, rendezvous, "127.0.0.1"), groups
            )
        )
        ends = self.ends * len(instances) if transport == "loopback" else self.ends
        self._threads = threads
        self._serving = []
        self.ports = []
        for instance, end in zip(instances, ends, strict=True):
            rank = layout.membership.rank(instance)
            if instance.pool == "expert":
                self._serving.append(threads.submit(serve, end, rank, instance.number))
            else:
                self.ports.append(end.attention_port(rank, RULE))

    def take_step(self) -> None:
        steps = [self._threads.submit(take_step, port, self.layout) for port in self.ports]
        for step in steps:
            step.result(60)

    def close(self) -> None:
        self.ends[0].shutdown()
        for serving in self._serving:
            serving.result(30)
        list(self._threads.map(lambda end: end.close(), self.ends))
        self.ports, self.ends = [], []


def held() -> tuple[int, int, int]:
    """Descriptors, mappings of shared memory, threads of this process."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text().splitlines()
    shared = sum("janus-" in line for line in maps)
    return len(os.listdir("/proc/self/fd")), shared, threading.active_count()  # noqa: PTH208


def open_use_and_close(transport: Transport, generations: range, pool: ThreadPoolExecutor) -> None:
    rendezvous = MemoryRendezvous()
    for generation in generations:
        layout = layout_of(generation)
        running = Running(transport, layout, rendezvous, layout.membership.instances, pool)
        for _ in range(2):
            running.take_step()
        running.close()


@pytest.mark.parametrize(("transport", "number"), (("shm", 100), ("loopback", 100), ("gloo", 20)))
def test_nothing_is_left_of_exchanges_that_were_closed(transport: Transport, number: int) -> None:
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda _: threading.Event().wait(0.05), range(12)))  # starts all threads
        open_use_and_close(transport, range(2), pool)  # what stays for good
        before = held()
        open_use_and_close(transport, range(2, 2 + number), pool)
        assert held() == before


@pytest.mark.parametrize("transport", ("shm", "loopback", "gloo"))
def test_two_exchanges_are_open_at_once_and_used_by_turns(transport: Transport) -> None:
    """As a change of membership needs it: the next one is opened while this one serves."""
    rendezvous = MemoryRendezvous()
    with ThreadPoolExecutor(24) as pool:
        layouts = layout_of(0), layout_of(2)
        first, second = (
            Running(transport, layout, rendezvous, layout.membership.instances, pool)
            for layout in layouts
        )
        for _ in range(5):
            first.take_step()
            second.take_step()
        first.close()
        second.take_step()
        second.close()


def test_exchanges_of_one_membership_are_kept_apart_by_their_names() -> None:
    """As micro-batches need it."""
    rendezvous, layout = MemoryRendezvous(), layout_of(2)
    with ThreadPoolExecutor(24) as pool:
        halves = [
            Running("shm", layout, named, layout.membership.instances, pool)
            for named in (NamespacedRendezvous(rendezvous, name) for name in ("0", "1"))
        ]
        for half in (*halves, *halves):
            half.take_step()
        for half in halves:
            half.close()


def test_members_that_are_none_and_halves_of_loopback_are_refused() -> None:
    layout = layout_of(0)
    other = InstanceId(pool="expert", number=77)
    with pytest.raises(ConfigError, match="expert 77 is not in generation 0"):
        open_exchange("shm", layout, [other], MemoryRendezvous(), "127.0.0.1")
    with pytest.raises(ConfigError, match="loopback"):
        own = layout.membership.attention
        open_exchange("loopback", layout, own, MemoryRendezvous(), "127.0.0.1")


@pytest.mark.parametrize("transport", ("shm", "loopback"))
def test_errors_name_instances_by_their_ids(transport: Transport) -> None:
    layout = layout_of(5)  # attention 5, experts 5 and 6
    members, hasty = layout.membership.instances, WaitRule(timeout_s=0.2)
    exchange = open_exchange(transport, layout, members, MemoryRendezvous(), "127.0.0.1")
    port = exchange.attention_port(0, hasty)
    first, second = (exchange.expert_port(rank, RULE) for rank in range(2))
    port.begin_step(TOKENS)
    ticket = port.dispatch(0, torch.zeros(TOKENS, HIDDEN))
    work = first.accept()
    assert work is not None
    first.reply(work, work.hidden, ReplyMetadata(routing_digest=1, activated=0))
    with pytest.raises(ExchangeTimeout, match=r"^expert 6 \(pid \d+\)"):
        port.combine(ticket)
    work = second.accept()
    assert work is not None
    second.reply(work, work.hidden, ReplyMetadata(routing_digest=2, activated=0))
    with pytest.raises(RoutingDivergence, match="expert 5: 1, expert 6: 2"):
        port.combine(ticket)
    exchange.close()


# --- a peer that is a process -------------------------------------------------------------------


def peer(folder: str, transport: Any, number: str) -> None:
    """The first expert instance of each exchange, all in one process."""
    torch.set_num_threads(1)
    for generation in range(int(number)):
        layout = layout_of(generation)
        instance = layout.membership.expert[0]
        with ExitStack() as stack:
            exchange = open_exchange(
                transport, layout, [instance], FolderRendezvous(Path(folder)), "127.0.0.1"
            )
            stack.callback(exchange.close)
            serve(exchange, 0, instance.number)
    print("served all")


@pytest.mark.parametrize(("transport", "number"), (("shm", 20), ("gloo", 5)))
def test_a_process_that_lives_on_takes_part_in_exchange_after_exchange(
    transport: Transport, number: int, tmp_path: Path
) -> None:
    command = [sys.executable, __file__, str(tmp_path), transport, str(number)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            with ThreadPoolExecutor(12) as pool:
                for generation in range(number):
                    layout = layout_of(generation)
                    members = layout.membership.instances
                    here = [one for one in members if one != layout.membership.expert[0]]
                    meeting = FolderRendezvous(tmp_path)
                    running = Running(transport, layout, meeting, here, pool)
                    running.take_step()
                    running.close()
            assert process.communicate(timeout=60)[0].strip() == "served all"
        finally:
            process.kill()


if __name__ == "__main__":
    peer(*sys.argv[1:])
