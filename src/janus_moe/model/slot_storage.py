"""The memory of an expert instance's slots, moved to a larger or smaller one while it is served.

One layer is copied at a time, so that memory for one layer more is all that it takes. The copy is
complete before it takes the place of the old one, which stays as it is for those who read it. It
does not know which slots are in use.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from janus_moe.model.expert_block import ExpertLayer


def moved_slots(
    weights: ExpertLayer,
    num_slots: int,
    moves: Mapping[int, int],
    before_copy: Callable[[int], None] = lambda num_bytes: None,
) -> ExpertLayer:
    """The same layer in new memory; slots that nothing moves to are uninitialised.

    num_slots: of the new memory.
    moves: slot -> slot in the new memory; other slots are left behind.
    before_copy: told the bytes of each slot before it is copied; it may wait or raise.
    """
    gate_up, down = (
        old.new_empty(num_slots, *old.shape[1:]) for old in (weights.gate_up, weights.down)
    )
    num_bytes = slot_bytes(weights)
    for old, new in moves.items():
        before_copy(num_bytes)
        copy_rows(gate_up[new], weights.gate_up[old])
        copy_rows(down[new], weights.down[old])
    return replace(weights, gate_up=gate_up, down=down)


def slot_bytes(weights: ExpertLayer) -> int:
    """Bytes of one slot of a layer."""
    return sum(tensor[:1].nbytes for tensor in (weights.gate_up, weights.down))


def copy_rows(target: Tensor, source: Tensor) -> None:
    """Copies contiguous tensors of one shape; on the CPU on one thread, whatever torch may use."""
    if target.dtype == source.dtype and target.device.type == source.device.type == "cpu":
        np.copyto(raw_bytes(target), raw_bytes(source))
    else:
        target.copy_(source)


def raw_bytes(tensor: Tensor) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """[bytes] uint8, the memory of a contiguous tensor on the CPU."""
    return tensor.detach().view(-1).view(torch.uint8).numpy()


def release_free_memory() -> None:
    """Gives freed memory back to the operating system where the C library may have kept it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
