"""The memory of slots, as tensors whose first dimension are the slots: more of it, or less.

On the CPU the system gives memory when it is first written to. So a tensor reserves addresses for
more slots than it has, and is extended by a longer view of the same memory. Otherwise it is copied;
the copy is complete before anyone sees it, and the old memory stays as it is for those who read it.
This module does not know which slots are in use, nor by whom.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

BeforeCopy = Callable[[int], None]
"""Told the bytes of each slot before it is copied; it may wait or raise."""


def slot_memory(shape: Sequence[int], reserved: int, like: Tensor) -> Tensor:
    """Uninitialised memory.

    shape: [slots, ...] of what is returned.
    reserved: slots that it can be extended to at no cost; on the CPU only, and where the system
        gives out more addresses than memory.
    like: says dtype and device.
    """
    num_slots, *of_one = shape
    if like.device.type == "cpu" and reserved > num_slots:
        with contextlib.suppress(RuntimeError):  # no addresses without memory behind them
            return like.new_empty(reserved, *of_one)[:num_slots]
    return like.new_empty(num_slots, *of_one)


def extended(slots: Tensor, num_slots: int) -> Tensor | None:
    """A view of the same memory with more slots; None when no more are reserved."""
    if num_slots > _reserved(slots):
        return None
    return slots.as_strided((num_slots, *slots.shape[1:]), slots.stride())


def moved(
    slots: Tensor, num_slots: int, moves: Mapping[int, int], before_copy: BeforeCopy
) -> Tensor:
    """New memory; slots that nothing moves to are uninitialised.

    num_slots: of the new memory.
    moves: slot -> slot in the new memory; other slots are left behind.
    """
    new = slot_memory((num_slots, *slots.shape[1:]), _reserved(slots), slots)
    for source, target in moves.items():
        before_copy(slots[source].nbytes)
        _copy(new[target], slots[source])
    return new


def raw_bytes(tensor: Tensor) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """[bytes] uint8, the memory of a contiguous tensor on the CPU."""
    return tensor.detach().view(-1).view(torch.uint8).numpy()


def release_free_memory() -> None:
    """Gives freed memory back to the operating system where the C library may have kept it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reserved(slots: Tensor) -> int:
    """Slots that the memory of a tensor has addresses for."""
    return slots.untyped_storage().nbytes() // (slots.stride(0) * slots.itemsize)


def _copy(target: Tensor, source: Tensor) -> None:
    if target.device.type == "cpu":
        np.copyto(raw_bytes(target), raw_bytes(source))  # one thread, whatever torch may use
    else:
        target.copy_(source)
