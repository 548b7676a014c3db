"""Claims about the memory of slots: contents move whole, the old memory stays, and what is given up
goes back to the operating system."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from janus_moe.errors import ConflictError
from janus_moe.model.expert_block import ExpertLayer
from janus_moe.model.slot_storage import moved_slots, release_free_memory, slot_bytes


def layer(num_slots: int, width: int, hidden: int, dtype: torch.dtype) -> ExpertLayer:
    return ExpertLayer(
        router=torch.zeros(4, hidden),
        router_bias=None,
        slots=(),
        gate_up=torch.randn(num_slots, 2 * width, hidden).to(dtype),
        down=torch.randn(num_slots, hidden, width).to(dtype),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slots_move_whole_and_the_old_memory_stays(dtype: torch.dtype) -> None:
    old = layer(3, 5, 7, dtype)
    before = old.gate_up.clone(), old.down.clone()
    copied: list[int] = []
    new = moved_slots(old, 5, {2: 0, 0: 4}, copied.append)
    assert new.gate_up.shape == (5, 10, 7) and new.down.shape == (5, 7, 5)
    for source, target in ((2, 0), (0, 4)):
        assert torch.equal(new.gate_up[target], old.gate_up[source])
        assert torch.equal(new.down[target], old.down[source])
    assert torch.equal(old.gate_up, before[0]) and torch.equal(old.down, before[1])
    assert new.router is old.router and new.gate_up.dtype == dtype
    assert copied == [slot_bytes(old)] * 2 == [15 * 7 * dtype.itemsize] * 2


def test_it_can_be_given_up_before_any_slot() -> None:
    def give_up(num_bytes: int) -> None:
        raise ConflictError("given up")

    with pytest.raises(ConflictError):
        moved_slots(layer(3, 5, 7, torch.float32), 2, {0: 0}, give_up)


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux")
def test_memory_goes_back_after_shrinking() -> None:
    """Twelve layers of 64 slots, 216 MiB, and of 16."""
    layers = [layer(64, 96, 256, torch.float32) for _ in range(12)]
    full = resident_mib()
    for number in range(12):
        layers[number] = moved_slots(layers[number], 16, {slot: slot for slot in range(16)})
        assert resident_mib() < full + 18, "one layer more at a time"
    release_free_memory()
    assert full - resident_mib() > 0.9 * 12 * 48 * slot_bytes(layers[0]) / 2**20
