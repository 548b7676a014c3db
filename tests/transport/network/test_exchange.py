"""What the exchange among processes promises beside the contract: its layout, trouble, garbage."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import msgspec
import pytest
import torch
from tests.transport.network.local_network import LocalNetwork

from janus_moe.errors import (
    ConfigError,
    ExchangeClosed,
    ExchangeError,
    ExchangeTimeout,
    PeerLost,
)
from janus_moe.spec import InstanceId, Membership, PoolShape
from janus_moe.transport import AttentionPort, ExchangeLayout, ReplyMetadata, WaitRule
from janus_moe.transport.lockstep.control_block import control_block_bytes
from janus_moe.transport.network.channel import Pending
from janus_moe.transport.network.control_broadcast import (
    CONTROL_TAG,
    ControlBroadcast,
    LeaveNotice,
    decode_leave_notice,
)
from janus_moe.transport.network.exchange import NetworkExchange, open_network
from janus_moe.transport.network.rendezvous import MemoryRendezvous

HOST = "127.0.0.1"
LAYOUT = ExchangeLayout(
    membership=Membership.on_hosts((0,), (1, 1)),
    hidden_size=4,
    dtype="bfloat16",
    max_tokens=8,
    plan="2pc-direct",
)


@contextmanager
def joined(layout: ExchangeLayout, meeting: MemoryRendezvous) -> Iterator[list[NetworkExchange]]:
    """One end per instance, attention first."""
    shape = layout.shape
    instances = [InstanceId(pool="attention", number=i) for i in range(shape.attention)]
    instances += [InstanceId(pool="expert", number=e) for e in range(shape.expert)]
    with ThreadPoolExecutor(len(instances)) as threads:
        joins = [threads.submit(open_network, layout, i, meeting, HOST) for i in instances]
        ends = [join.result(60) for join in joins]
    try:
        yield ends
    finally:
        for end in ends:
            end.close()


def serve(end: NetworkExchange, rule: WaitRule) -> None:
    """An expert instance that doubles and counts itself."""
    port = end.expert_port(LAYOUT.membership.rank(end.instance), rule)
    with suppress(ExchangeError):
        while True:
            work = port.accept()
            if work is not None:
                port.reply(work, 2 * work.hidden.float(), ReplyMetadata(1, 2))


def exchange(port: AttentionPort, value: float) -> torch.Tensor:
    port.begin_step(3)
    hidden = torch.full((3, 4), value, dtype=torch.bfloat16)
    return port.combine(port.dispatch(0, hidden)).hidden


def test_a_layout_survives_messagepack_and_checks_itself() -> None:
    data = msgspec.msgpack.encode(LAYOUT)
    assert msgspec.msgpack.decode(data, type=ExchangeLayout) == LAYOUT
    with pytest.raises(ConfigError, match=r"2pc-tree.*2pc-direct"):
        msgspec.structs.replace(LAYOUT, plan="2pc-tree")
    with pytest.raises(msgspec.ValidationError, match="3pc"):
        msgspec.msgpack.decode(data.replace(b"2pc-direct", b"3pc-direct"), type=ExchangeLayout)


def test_dtypes_and_indices_that_are_wrong_are_refused_with_both() -> None:
    with joined(LAYOUT, MemoryRendezvous()) as ends:
        with pytest.raises(ConfigError, match="attention 0, not of expert 1"):
            ends[0].expert_port(1, WaitRule())
        port = ends[0].attention_port(0, WaitRule())
        with pytest.raises(ConfigError, match=r"9 tokens.*room for 8.*--max-num-batched-tokens"):
            port.begin_step(9)
        port.begin_step(1)
        with pytest.raises(ValueError, match=r"float32.*bfloat16"):
            port.dispatch(0, torch.zeros(1, 4))


def test_other_processes_at_the_port_disturb_nothing_and_soon_get_no_answer() -> None:
    meeting = Listening()
    rule = WaitRule(timeout_s=20.0)
    with joined(LAYOUT, meeting) as ends, ThreadPoolExecutor(2) as threads:
        assert len(meeting.ports) == len(ends)
        assert len(meeting.intruders) >= len(ends)
        for end in ends[1:]:
            threads.submit(serve, end, rule)
        port = ends[0].attention_port(0, rule)
        for number, address in enumerate(meeting.ports):
            with pytest.raises(TimeoutError):
                socket.create_connection((HOST, address), 0.1)
            assert torch.equal(exchange(port, number), torch.full((3, 4), 4.0 * number))
        ends[0].shutdown()
    for intruder in meeting.intruders:
        intruder.close()


def test_a_port_that_stays_open_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "janus_moe.transport.network.gloo.drop_new_connections", lambda published: 0
    )
    with joined(LAYOUT, MemoryRendezvous()):
        assert f"activations at {HOST} stays open to others" in caplog.text


class Listening(MemoryRendezvous):
    """Sends garbage to every port at which this process listens once addresses are known."""

    def __init__(self) -> None:
        super().__init__()
        self.ports: set[int] = set()
        self._others = _listening_ports()  # of ends that are not freed yet
        self.intruders: list[socket.socket] = []
        self._noting = threading.Lock()

    def put(self, key: str, value: bytes) -> None:
        with self._noting:
            for port in _listening_ports() - self.ports - self._others:
                self.ports.add(port)
                for payload in (b"", b"GET / HTTP/1.1\r\n\r\n", bytes(range(1, 256)) * 64):
                    self.intruders.append(socket.create_connection((HOST, port), 5))
                    self.intruders[-1].sendall(payload)
        super().put(key, value)


def _listening_ports() -> set[int]:
    import psutil

    return {c.laddr.port for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN"}


def test_the_port_is_bound_to_the_given_address_only() -> None:
    import psutil

    with joined(LAYOUT, MemoryRendezvous()):
        listening = [c for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN"]
        assert {c.laddr.ip for c in listening} == {HOST}


@pytest.mark.parametrize("way", ("memory", "gloo"))
def test_rows_within_a_node_go_over_gloo_only_where_they_are_told_to(way: str) -> None:
    layout = msgspec.structs.replace(
        LAYOUT, membership=Membership.on_hosts((0,), (0, 1)), within_nodes=way
    )
    rule = WaitRule(timeout_s=20.0)
    sent: set[int] = set()
    with joined(layout, MemoryRendezvous()) as ends, ThreadPoolExecutor(2) as threads:
        channel = ends[0]._endpoint._channel
        send = channel.send

        def noting(peer: int, tag: int, buffer: torch.Tensor) -> Pending:
            if tag != CONTROL_TAG:
                sent.add(peer)
            return send(peer, tag, buffer)

        channel.send = noting  # type: ignore[method-assign]
        for end in ends[1:]:
            threads.submit(serve, end, rule)
        port = ends[0].attention_port(0, rule)
        assert torch.equal(exchange(port, 1.0), torch.full((3, 4), 4.0))
        ends[0].shutdown()
    assert sent == ({2} if way == "memory" else {1, 2})


def test_a_connection_that_closes_ends_all_waits_and_names_the_peer() -> None:
    rule = WaitRule(timeout_s=20.0)
    with joined(LAYOUT, MemoryRendezvous()) as ends, ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(ends[1].expert_port(0, rule).accept)
        ends[2].expert_port(1, rule)
        port = ends[0].attention_port(0, rule)
        port.begin_step(1)
        ticket = port.dispatch(3, torch.zeros(1, 4, dtype=torch.bfloat16))
        waiting.result(10)
        ends[2]._endpoint._channel.abort()  # as if its process were killed
        started = time.monotonic()
        with pytest.raises(PeerLost, match=r"^expert 1 \(pid \d+\) is gone") as caught:
            port.combine(ticket)
        assert time.monotonic() - started < 10.0
        assert (caught.value.step, caught.value.layer) == (0, 3)


def test_no_instance_waits_forever_for_instances_that_never_come() -> None:
    first = InstanceId(pool="attention", number=0)
    refusal = pytest.raises(ExchangeError, match=r"rank 0 of 3.*127\.0\.0\.1.*within 0\.3 s")
    with refusal:
        open_network(LAYOUT, first, MemoryRendezvous(), HOST, timeout_s=0.3)


def test_an_address_of_another_host_is_refused() -> None:
    first = InstanceId(pool="attention", number=0)
    with pytest.raises(ExchangeError, match=r"203\.0\.113\.1"):
        open_network(LAYOUT, first, MemoryRendezvous(), "203.0.113.1", timeout_s=0.3)


def test_threads_end_with_their_exchange() -> None:
    before = threading.active_count()
    rule = WaitRule(timeout_s=20.0)
    with joined(LAYOUT, MemoryRendezvous()) as ends, ThreadPoolExecutor(2) as threads:
        for end in ends[1:]:
            threads.submit(serve, end, rule)
        port = ends[0].attention_port(0, rule)
        for step in range(3):
            assert torch.equal(exchange(port, step), torch.full((3, 4), 4.0 * step))
        ends[0].shutdown()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_nothing_is_received_from_a_peer_that_has_left() -> None:
    """Without an end of the channel: gloo does not tell all peers of that."""
    network = LocalNetwork(2)
    words = memoryview(bytearray(control_block_bytes(PoolShape(attention=1, expert=1)))).cast("q")
    heard: list[int] = []

    def listen(rank: int) -> ControlBroadcast:
        return ControlBroadcast(
            rank,
            2,
            network.channel(rank),
            words,
            on_line=lambda: None,
            on_peer_left=lambda peer, leave: heard.append(peer),
            on_peer_lost=heard.append,
        )

    first, second = listen(0), listen(1)
    second.start()
    first.publish()
    first.leave(ExchangeClosed("done"))
    started = time.monotonic()
    second.join(20)
    assert heard == [0] and time.monotonic() - started < 10


@pytest.mark.parametrize(
    "error",
    [
        ExchangeTimeout(peer="expert 1 (pid 7)", stage="reply", step=3, layer=2, waited_s=1.5),
        PeerLost(peer="attention 0 (pid 9)", stage="dispatch", step=1, layer=5),
        ExchangeClosed("the exchange was shut down"),
        ExchangeError("\N{SNOWMAN}" * 1000),
    ],
)
def test_a_leave_notice_brings_the_error_to_the_others(error: ExchangeError) -> None:
    data = msgspec.msgpack.encode(LeaveNotice.of(error))
    assert len(data) <= 952
    told = decode_leave_notice(data).error("expert 4 (pid 3)")
    assert type(told) is type(error)
    if isinstance(error, (ExchangeTimeout, PeerLost)):
        assert str(told) == str(error)
    else:
        assert re.match(r"expert 4 \(pid 3\)", str(told))


def test_an_unreadable_leave_notice_is_an_error_too() -> None:
    assert "unreadable" in decode_leave_notice(b"\xc1 what").text
