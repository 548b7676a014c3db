"""Claims about the memory of slots: contents move whole, the old memory stays, slots that are not
used cost nothing, and what is given up goes back to the operating system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from janus_moe.errors import ConflictError
from janus_moe.model.expert_block import ExpertLayer
from janus_moe.model.slot_storage import release_free_memory, slot_memory


def layer(
    num_slots: int,
    width: int,
    hidden: int,
    dtype: torch.dtype = torch.float32,
    reserved: int = 0,
) -> ExpertLayer:
    like = torch.empty(0, dtype=dtype)
    gate_up = slot_memory((num_slots, 2 * width, hidden), reserved, like)
    down = slot_memory((num_slots, hidden, width), reserved, like)
    for slots in (gate_up, down):
        slots.normal_()
    return ExpertLayer(torch.zeros(4, hidden), None, (), gate_up, down)


def ignore(num_bytes: int) -> None:
    """Copies at once."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slots_move_whole_and_the_old_memory_stays(dtype: torch.dtype) -> None:
    old = layer(3, 5, 7, dtype)
    before = old.gate_up.clone(), old.down.clone()
    copied: list[int] = []
    new = old.moved(5, {2: 0, 0: 4}, copied.append)
    assert new.gate_up.shape == (5, 10, 7) and new.down.shape == (5, 7, 5)
    for source, target in ((2, 0), (0, 4)):
        assert torch.equal(new.gate_up[target], old.gate_up[source])
        assert torch.equal(new.down[target], old.down[source])
    assert torch.equal(old.gate_up, before[0]) and torch.equal(old.down, before[1])
    assert new.router is old.router and new.gate_up.dtype == dtype
    assert sum(copied) == 2 * old.slot_bytes == 2 * 15 * 7 * dtype.itemsize


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_memory_is_reserved_more_slots_are_the_same_memory(dtype: torch.dtype) -> None:
    old = layer(3, 5, 7, dtype, reserved=6)
    assert old.gate_up.shape == (3, 10, 7) and old.gate_up.is_contiguous()
    assert old.extended(7) is None and layer(3, 5, 7).extended(4) is None
    new = old.extended(6)
    assert new is not None and new.gate_up.shape == (6, 10, 7) and new.down.is_contiguous()
    new.gate_up[5] = 1
    new.gate_up[1] = 2
    assert new.gate_up.data_ptr() == old.gate_up.data_ptr() and (old.gate_up[1] == 2).all()
    small = new.moved(2, {1: 0, 5: 1}, ignore)
    assert (small.gate_up[0] == 2).all() and (small.gate_up[1] == 1).all()
    again = small.extended(6)
    assert again is not None and torch.equal(again.gate_up[:2], small.gate_up), "as before"
    none = new.moved(0, {}, ignore).extended(1)
    assert none is not None and none.down.shape == (1, 7, 5)


def test_it_can_be_given_up_before_any_slot() -> None:
    def give_up(num_bytes: int) -> None:
        raise ConflictError("given up")

    with pytest.raises(ConflictError):
        layer(3, 5, 7).moved(2, {0: 0}, give_up)


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux")
def test_memory_is_taken_when_it_is_filled_and_goes_back_after_shrinking() -> None:
    """In a process of its own: what other tests have left in the heap keeps pages."""
    check = "from tests.model.test_slot_storage import check_memory; check_memory()"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=Path(__file__).parents[2])


def check_memory() -> None:
    """Twelve layers of 16 slots, 54 MiB, of 64, and of 16 again."""
    layer(1, 96, 256)
    release_free_memory()
    start = resident_mib()
    layers = [layer(16, 96, 256, reserved=64) for _ in range(12)]
    few_mib = 12 * 16 * layers[0].slot_bytes / 2**20
    assert resident_mib() - start < few_mib + 20, "what is reserved costs nothing"
    for number in range(12):
        grown = layers[number].extended(64)
        assert grown is not None
        grown.gate_up[16:].fill_(1)
        grown.down[16:].fill_(1)
        layers[number] = grown
    full = resident_mib()
    for number in range(12):
        layers[number] = layers[number].moved(16, {slot: slot for slot in range(16)}, ignore)
        assert resident_mib() < full + 18, "one layer more at a time"
    del grown
    release_free_memory()
    assert full - resident_mib() > 0.9 * 3 * few_mib
    assert resident_mib() - start < few_mib + 20
