"""Layout and descriptors of the shared-memory exchange, and how processes get hold of them."""

from __future__ import annotations

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_moe.errors import ConfigError, ExchangeError
from janus_moe.spec import Membership, PoolShape
from janus_moe.transport import ExchangeLayout, ReplyMetadata, WaitRule, spin_budget_us
from janus_moe.transport.host_memory import handshake, shared_memory
from janus_moe.transport.host_memory.region import RegionLayout
from janus_moe.transport.host_memory.shared_memory import SharedMemoryExchange, open_shared_memory
from janus_moe.transport.lockstep.control_block import control_block_bytes
from janus_moe.transport.lockstep.wakeup import EventFdWakeup
from janus_moe.transport.network.rendezvous import MemoryRendezvous

LAYOUT = ExchangeLayout(
    membership=Membership.on_hosts((0,), (0,)), max_tokens=4, hidden_size=3, dtype="bfloat16"
)


def of_shape(attention: int, expert: int) -> ExchangeLayout:
    shape = PoolShape(attention=attention, expert=expert)
    return msgspec.structs.replace(LAYOUT, membership=Membership.first(shape))


def open_all(layout: ExchangeLayout) -> SharedMemoryExchange:
    return open_shared_memory(layout, layout.membership.instances, MemoryRendezvous())


@given(
    attention=st.integers(1, 9),
    expert=st.integers(1, 9),
    max_tokens=st.integers(1, 99),
    hidden_size=st.integers(1, 99),
    wide=st.booleans(),
)
def test_areas_are_aligned_and_do_not_overlap(
    attention: int, expert: int, max_tokens: int, hidden_size: int, wide: bool
) -> None:
    exchange = msgspec.structs.replace(
        of_shape(attention, expert),
        max_tokens=max_tokens,
        hidden_size=hidden_size,
        dtype="float32" if wide else "bfloat16",
    )
    layout = RegionLayout(exchange)
    elements = attention * max_tokens * hidden_size
    batch_bytes = elements * (4 if wide else 2)
    offsets = [layout.batch_offset, *(layout.partial_offset(e) for e in range(expert))]
    ends = [layout.batch_offset + batch_bytes, *(start + 4 * elements for start in offsets[1:])]
    assert control_block_bytes(exchange.shape) <= offsets[0]
    assert all(end <= start for end, start in zip(ends, offsets[1:], strict=False))
    assert ends[-1] <= layout.total_bytes
    assert all(start % 64 == 0 for start in offsets)


def test_descriptors_are_not_inherited_by_accident() -> None:
    exchange = open_all(LAYOUT)
    assert not any(os.get_inheritable(wakeup.descriptor) for wakeup in exchange._wakeups)
    exchange.close()


def test_a_region_of_another_layout_is_refused() -> None:
    """Two members that disagree on the layout: the one that did not create the region sees it."""
    other = msgspec.structs.replace(LAYOUT, hidden_size=50)
    attention, expert = LAYOUT.membership.instances
    meeting = MemoryRendezvous()
    with ThreadPoolExecutor(1) as threads:
        creator = threads.submit(open_shared_memory, LAYOUT, [attention], meeting, 20.0)
        with pytest.raises(ConfigError, match=r"\d+ bytes, its layout \d+"):
            open_shared_memory(other, [expert], meeting, 20.0)
        creator.result(20).close()


def test_the_region_cannot_be_made_smaller() -> None:
    """A process that maps memory which another one takes away would be killed."""
    region, *wakeups = shared_memory._create(LAYOUT)
    with pytest.raises(PermissionError):
        os.ftruncate(region, 64)
    for descriptor in (region, *wakeups):
        os.close(descriptor)
    loose = os.memfd_create("loose")
    size = RegionLayout(LAYOUT).total_bytes
    os.ftruncate(loose, size)
    with pytest.raises(ConfigError, match="not sealed"):
        shared_memory._map(loose, size)


def test_members_that_never_come_are_named() -> None:
    attention, expert = LAYOUT.membership.instances
    with pytest.raises(ExchangeError, match=r"expert 0/shared memory.*within 0\.\d+ s"):
        open_shared_memory(LAYOUT, [attention], MemoryRendezvous(), 0.2)
    with pytest.raises(ExchangeError, match=r"attention 0/shared memory.*within 0\.\d+ s"):
        open_shared_memory(LAYOUT, [expert], MemoryRendezvous(), 0.2)


@pytest.mark.parametrize("elsewhere", ("another network namespace", ""))
def test_members_that_cannot_share_memory_say_what_to_use_instead(
    elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, meeting = threading.local(), MemoryRendezvous()
    monkeypatch.setattr(handshake, "current_place", lambda: where.place)

    def join(rank: int) -> None:
        where.place = elsewhere if rank else "here"
        open_shared_memory(LAYOUT, [LAYOUT.membership.instances[rank]], meeting, 2.0)

    with ThreadPoolExecutor(2) as threads:
        for joined in [threads.submit(join, rank) for rank in range(2)]:
            with pytest.raises(ExchangeError, match=r"gloo|expert 0/shared memory"):
                joined.result(20)


def test_a_large_pool_gets_its_descriptors_in_several_packets() -> None:
    layout = of_shape(1, 300)
    instances = layout.membership.instances
    meeting = MemoryRendezvous()
    with ThreadPoolExecutor(1) as threads:
        creator = threads.submit(open_shared_memory, layout, instances[:-1], meeting, 20.0)
        last = open_shared_memory(layout, instances[-1:], meeting, 20.0)
        first = creator.result(20)
    first._wakeups[-1].notify()
    started = time.monotonic()
    last._wakeups[-1].wait(10.0)
    assert time.monotonic() - started < 5.0
    first.close()
    last.close()


def test_wrong_dtypes_are_refused_with_both() -> None:
    exchange = open_all(LAYOUT)
    port = exchange.attention_port(0, WaitRule())
    expert = exchange.expert_port(0, WaitRule())
    port.begin_step(1)
    with pytest.raises(ValueError, match=r"float32.*bfloat16"):
        port.dispatch(0, torch.zeros(1, 3))
    port.dispatch(0, torch.zeros(1, 3, dtype=torch.bfloat16))
    work = expert.accept()
    assert work is not None
    with pytest.raises(ValueError, match=r"bfloat16.*float32"):
        expert.reply(work, torch.zeros(1, 3, dtype=torch.bfloat16), ReplyMetadata(0, 0))
    with pytest.raises(ValueError, match=r"\(2, 3\) to \(1, 3\)"):
        expert.reply(work, torch.zeros(2, 3), ReplyMetadata(0, 0))
    exchange.close()


def test_a_system_without_the_calls_says_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_PEERCRED")
    with pytest.raises(ExchangeError, match=r"needs Linux.*loopback or gloo"):
        open_all(LAYOUT)


def test_a_wakeup_holds_any_number_of_notifications_and_is_deaf_once_closed() -> None:
    wakeup = EventFdWakeup.create()
    for _ in range(100_000):
        wakeup.notify()
    wakeup.wait(5.0)
    wakeup.close()
    wakeup.notify()
    wakeup.close()


@pytest.mark.parametrize(
    ("num_cores", "compute_threads", "spins"),
    [(3, 1, True), (2, 1, False), (4, 3, False), (5, 3, True)],
)
def test_spinning_needs_a_core_that_no_thread_wants(
    num_cores: int, compute_threads: int, spins: bool
) -> None:
    assert (spin_budget_us(num_cores, compute_threads) > 0) is spins
