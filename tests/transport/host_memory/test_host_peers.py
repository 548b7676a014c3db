"""Messages in memory that instances of one host share, and how they get hold of it."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import torch
from tests.transport.host_memory.host_peers_of_threads import PAIR, connect, met

from janus_moe.errors import ExchangeError
from janus_moe.transport.exchange_plans.topology import Topology
from janus_moe.transport.host_memory import handshake as handshake
from janus_moe.transport.host_memory.handshake import Advertisement
from janus_moe.transport.host_memory.host_peers import HostPeers, NoHostPeers
from janus_moe.transport.network.channel import ChannelAborted
from janus_moe.transport.network.rendezvous import MemoryRendezvous


def filled(end: HostPeers | NoHostPeers, value: int, num_bytes: int = 100) -> torch.Tensor:
    return end.memory(num_bytes).fill_(value)


def test_a_message_is_read_where_it_was_written_and_given_back() -> None:
    with met() as (left, right):
        first, second = filled(left, 1), filled(left, 2, 5000)
        for buffer in (first, second, first):
            received = right.receive(0, 3)
            assert not received.arrived()
            sent = left.send(1, 3, buffer)
            received.wait(5)
            assert torch.equal(received.data[: len(buffer)], buffer)
            buffer += 10
            assert torch.equal(received.data[: len(buffer)], buffer)  # the same memory
            with pytest.raises(TimeoutError):
                sent.wait(0.01)
            received.release()
            sent.wait(5)


def test_waiting_threads_do_not_take_each_others_notifications() -> None:
    """Ten lanes, each with a thread at either end; every notification wakes one of them first."""
    lanes, rounds = range(10), 20

    def send(left: HostPeers, tag: int) -> None:
        buffer = left.memory(8)
        for number in range(rounds):
            buffer.fill_(number)
            left.send(1, tag, buffer).wait(20)

    def receive(right: HostPeers, tag: int) -> list[int]:
        seen = []
        for _ in range(rounds):
            received = right.receive(0, tag)
            received.wait(20)
            seen.append(int(received.data[0]))
            received.release()
        return seen

    with met() as (left, right), ThreadPoolExecutor(2 * len(lanes)) as threads:
        assert isinstance(left, HostPeers) and isinstance(right, HostPeers)
        got = [threads.submit(receive, right, tag) for tag in lanes]
        for tag in lanes:
            threads.submit(send, left, tag)
        assert [one.result(30) for one in got] == [list(range(rounds))] * len(lanes)


def test_a_wakeup_remembers_what_came_before_its_wait() -> None:
    with met() as (left, right):
        wakeup = right.wakeup()
        left.send(1, 0, filled(left, 1))
        right.receive(0, 0).wait(5)
        started = time.monotonic()
        wakeup.wait(20)  # whether or not the wait above has seen it
        wakeup.notify()
        wakeup.wait(20)
        assert time.monotonic() - started < 5


def test_the_end_of_either_side_ends_waits() -> None:
    with met() as (left, right), ThreadPoolExecutor(2) as threads:
        mine = threads.submit(left.receive(1, 0).wait)
        theirs = threads.submit(right.receive(0, 0).wait)
        time.sleep(0.05)
        left.abort()
        with pytest.raises(ChannelAborted):
            mine.result(5)
        with pytest.raises(ConnectionError, match="rank 0"):
            theirs.result(5)
        with pytest.raises(ChannelAborted):
            left.receive(1, 1).wait(5)
        with pytest.raises(ConnectionError, match="rank 0"):
            right.receive(0, 1).wait(5)


def test_nothing_is_left_of_host_peers_that_have_closed() -> None:
    gc.collect()
    descriptors, maps = len(os.listdir("/proc/self/fd")), our_maps()  # noqa: PTH208
    running = threading.active_count()
    with met(Topology((0, 0), (0, 1))) as ends:
        left, right = ends[:2]
        received = right.receive(0, 0)
        left.send(1, 0, filled(left, 1))
        received.wait(5)
        assert int(received.data[0]) == 1
        assert our_maps() > maps
        assert not listening()  # all are there
    del left, right, ends, received
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    assert our_maps() == maps
    assert threading.active_count() == running


def our_maps() -> int:
    return Path("/proc/self/maps").read_text().count("janus-host-peer")


def listening() -> list[str]:
    """Addresses of host peers at which a process listens."""
    lines = map(str.split, Path("/proc/net/unix").read_text().splitlines())
    return [line[-1] for line in lines if "@janus-" in line[-1] and line[3] == "00010000"]


def test_memory_that_was_never_written_takes_none() -> None:
    with met() as (left, _):
        assert isinstance(left, HostPeers)
        left.memory(1 << 30)[: 1 << 20].fill_(1)
        assert os.fstat(left._file).st_blocks * 512 < 2 << 20


# --- who is authenticated -----------------------------------------------------------------------


class Crowded(MemoryRendezvous):
    """Others connect to every address as soon as it is known, before host peers do."""

    def __init__(self) -> None:
        super().__init__()
        self.intruders: list[socket.socket] = []

    def put(self, key: str, value: bytes) -> None:
        advertisement = msgspec.msgpack.decode(value, type=Advertisement)
        hellos = [b"", secrets.token_bytes(3), secrets.token_bytes(4096)]
        for rank in range(3):
            hellos.append(handshake._HELLO.pack(secrets.token_bytes(32), rank))
        read_fd, write_fd = os.pipe()
        for hello in hellos:
            intruder = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            intruder.connect(f"\0{advertisement.name}")
            self.intruders.append(intruder)
            if hello:
                socket.send_fds(intruder, [hello], [read_fd, write_fd])
        os.close(read_fd)
        os.close(write_fd)
        super().put(key, value)


def test_unauthenticated_processes_are_dropped_and_disturb_nothing() -> None:
    crowd = Crowded()
    with met(Topology((0, 0), (0,)), crowd) as ends:
        received = ends[2].receive(0, 0)
        ends[0].send(2, 0, filled(ends[0], 7))
        received.wait(5)
        assert int(received.data[0]) == 7
        for intruder in crowd.intruders:
            intruder.settimeout(5)
            try:
                assert intruder.recv(100) == b""
            except ConnectionResetError:
                continue  # what it had said was not read
    for intruder in crowd.intruders:
        intruder.close()


def test_another_user_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says who has connected; the secret alone is not enough."""
    me = os.geteuid()
    monkeypatch.setattr(handshake, "current_place", lambda: "here")
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    meeting = MemoryRendezvous()
    with ThreadPoolExecutor(2) as pool:
        joins = [pool.submit(connect, rank, PAIR, meeting, 0.3) for rank in range(2)]
        for join in joins:
            with pytest.raises(ExchangeError, match=r"did not get hold of the memory of rank"):
                join.result(10)


@pytest.mark.parametrize("elsewhere", ("another network namespace", ""))
def test_instances_that_cannot_share_memory_are_left_out_on_both_sides(
    elsewhere: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Three of one node, and rank 2 is elsewhere, or its system has no such sockets."""
    where, meeting, topology = threading.local(), MemoryRendezvous(), Topology((0, 0), (0,))
    monkeypatch.setattr(handshake, "current_place", lambda: where.place)

    def join(rank: int) -> HostPeers | NoHostPeers:
        where.place = elsewhere if rank == 2 else "here"
        return connect(rank, topology, meeting, 20.0)

    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(3) as threads:
        ends = list(threads.map(join, range(3)))
    assert [sorted(end.peers) for end in ends] == [[1], [0], []]
    assert len(caplog.records) == 3
    assert "rank 2 cannot share memory with rank 0, 1 of its host" in caplog.text
    assert "messages between them go over TCP" in caplog.text
    for end in ends:
        end.close()


def test_no_instance_waits_forever_for_host_peers_that_never_come() -> None:
    with pytest.raises(ExchangeError, match=r"rank 0 does not know where rank 1 is.*0\.2 s"):
        connect(0, PAIR, MemoryRendezvous(), 0.2)
    meeting = MemoryRendezvous()
    silent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    name = f"janus-test-{secrets.token_hex(8)}"
    silent.bind(f"\0{name}")
    silent.listen()
    advertisement = Advertisement(place=handshake.current_place(), name=name, secret=b"")
    meeting.put("rank 1/host memory", msgspec.msgpack.encode(advertisement))
    with silent, pytest.raises(ExchangeError, match=r"rank 0 did not get .* of rank 1 .*0\.2 s"):
        connect(0, PAIR, meeting, 0.2)
