"""Layout, address and descriptors of the shared-memory exchange."""

from __future__ import annotations

import os
import threading

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_moe.errors import ConfigError
from janus_moe.spec import PoolShape
from janus_moe.transport import (
    ReplyMetadata,
    ShmAddress,
    ShmLayout,
    ShmRegion,
    WaitRule,
    spin_budget_us,
)
from janus_moe.transport.lockstep.control_block import control_block_bytes
from janus_moe.transport.lockstep.wakeup import EventFdWakeup

LAYOUT = ShmLayout(
    shape=PoolShape(attention=2, expert=2), max_tokens=4, hidden_size=3, dtype="bfloat16"
)


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
    shape = PoolShape(attention=attention, expert=expert)
    layout = ShmLayout(
        shape=shape,
        max_tokens=max_tokens,
        hidden_size=hidden_size,
        dtype="float32" if wide else "bfloat16",
    )
    elements = attention * max_tokens * hidden_size
    batch_bytes = elements * (4 if wide else 2)
    offsets = [layout.batch_offset, *(layout.partial_offset(e) for e in range(expert))]
    ends = [layout.batch_offset + batch_bytes, *(start + 4 * elements for start in offsets[1:])]
    assert control_block_bytes(shape) <= offsets[0]
    assert all(end <= start for end, start in zip(ends, offsets[1:], strict=False))
    assert ends[-1] <= layout.total_bytes
    assert all(start % 64 == 0 for start in offsets)


def test_an_address_survives_json_and_messagepack() -> None:
    region = ShmRegion.create(LAYOUT)
    address = region.address
    assert msgspec.json.decode(msgspec.json.encode(address), type=ShmAddress) == address
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(address), type=ShmAddress) == address
    region.close()


def test_descriptors_are_not_inherited_by_accident() -> None:
    region = ShmRegion.create(LAYOUT)
    assert not any(os.get_inheritable(fd) for fd in region.fds)
    region.close()


def test_a_region_of_another_layout_is_refused() -> None:
    region = ShmRegion.create(LAYOUT)
    other = msgspec.structs.replace(LAYOUT, hidden_size=5)
    with pytest.raises(ConfigError, match=r"\d+ bytes, its layout \d+"):
        ShmRegion.attach(msgspec.structs.replace(region.address, layout=other))
    region.close()


def test_wrong_dtypes_are_refused_with_both() -> None:
    region = ShmRegion.create(
        msgspec.structs.replace(LAYOUT, shape=PoolShape(attention=1, expert=1))
    )
    port = region.attention_port(0, WaitRule())
    expert = region.expert_port(0, WaitRule())
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
    region.close()


def test_works_where_neither_memfd_nor_eventfd_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.delattr(os, "eventfd", raising=False)
    region = ShmRegion.create(
        msgspec.structs.replace(LAYOUT, shape=PoolShape(attention=1, expert=1), dtype="float32")
    )
    assert os.fstat(region.fds[0]).st_nlink == 0, "the file must have no name"
    port = region.attention_port(0, WaitRule(timeout_s=10.0))
    expert = region.expert_port(0, WaitRule(timeout_s=10.0))

    def serve() -> None:
        for _ in range(20):
            work = expert.accept()
            assert work is not None
            expert.reply(work, 2 * work.hidden, ReplyMetadata(0, 0))

    thread = threading.Thread(target=serve)
    thread.start()
    for step in range(20):
        port.begin_step(2)
        hidden = torch.full((2, 3), float(step))
        assert torch.equal(port.combine(port.dispatch(0, hidden)).hidden, 2 * hidden)
    thread.join(10)
    region.close()


def test_a_bell_holds_any_number_of_rings_and_is_deaf_once_closed() -> None:
    wakeup = EventFdWakeup(*_small_pipe())
    for _ in range(100_000):
        wakeup.notify()
    wakeup.wait(5.0)
    wakeup.close()
    wakeup.notify()
    wakeup.close()


def _small_pipe() -> tuple[int, int]:
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    os.set_blocking(write_fd, False)
    return read_fd, write_fd


@pytest.mark.parametrize(
    ("num_cores", "compute_threads", "spins"), [(2, 1, True), (2, 2, False), (2, 4, False)]
)
def test_spinning_needs_a_core_that_nobody_wants(
    num_cores: int, compute_threads: int, spins: bool
) -> None:
    assert (spin_budget_us(num_cores, compute_threads) > 0) is spins
