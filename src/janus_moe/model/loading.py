"""Reads tensors by role into memory laid out for computing: several projections as one matrix.

It knows which format a tensor is held in, not how anything is computed with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from janus_moe.model.checkpoint import Checkpoint, OnBytes, ignore_bytes
from janus_moe.model.slot_storage import slot_memory
from janus_moe.model.tensors import TensorInfo, TensorTable
from janus_moe.spec import ModelSpec
from janus_moe.torch_dtypes import torch_dtype


class Loader:
    """Reads one instance's share of a checkpoint onto a device and reports the bytes held."""

    def __init__(
        self,
        spec: ModelSpec,
        checkpoint: Checkpoint,
        device: torch.device,
        on_bytes: OnBytes = ignore_bytes,
    ) -> None:
        """Nothing is read yet.

        on_bytes: told the bytes in memory of each tensor that is read.
        """
        self.device = device
        self._checkpoint = checkpoint
        self._table = TensorTable(spec)
        self._num_experts = spec.moe.num_experts
        self._on_bytes = on_bytes

    def tensor(self, role: str, layer: int = 0) -> Tensor:
        """One tensor, in the format it is held in."""
        info = self._info(role, layer)
        return self._checkpoint.read(info.name, torch_dtype(info.format), self.device)

    def rows(self, roles: Sequence[str], layer: int, orders: Sequence[Any] = ()) -> Tensor:
        """Several weights [rows, columns] (or biases [rows]) one below another as one tensor.

        orders: per role an index [rows] that reorders its rows, or None.
        """
        infos = [self._info(role, layer) for role in roles]
        height = sum(info.shape[0] for info in infos)
        target = self.empty(infos[0], height, *infos[0].shape[1:])
        begin = 0
        for info, order in zip(infos, orders or [None] * len(infos), strict=True):
            stored = self._checkpoint.view(info.name)
            end = begin + info.shape[0]
            target[begin:end].copy_(stored if order is None else stored[order])
            begin = end
        return target

    def into(self, target: Tensor, role: str, layer: int, expert: int) -> None:
        """One expert's tensor into a place that was allocated for it."""
        target.copy_(self._checkpoint.view(self._info(role, layer, expert).name))

    def name(self, role: str, layer: int = 0) -> str:
        """What the checkpoint calls a tensor."""
        return self._table.info(role, layer).name

    def experts(self, layer: int, num_slots: int) -> tuple[Tensor, Tensor]:
        """Uninitialised memory for experts of a layer, which can be extended to all of them.

        Returns gate and up [slots, 2 * width, hidden], gate above up, and down
        [slots, hidden, width].
        """
        up, down = (self._table.info(role, layer) for role in ("expert_up", "expert_down"))
        width, hidden = up.shape
        return (
            slot_memory((num_slots, 2 * width, hidden), self._num_experts, self.empty(up, 0)),
            slot_memory((num_slots, hidden, width), self._num_experts, self.empty(down, 0)),
        )

    def empty(self, like: TensorInfo, *shape: int) -> Tensor:
        """Uninitialised memory in the format that a tensor is held in."""
        return torch.empty(*shape, dtype=torch_dtype(like.format), device=self.device)

    def _info(self, role: str, layer: int, expert: int = 0) -> TensorInfo:
        info = self._table.info(role, layer, expert)
        self._checkpoint.require([info])
        self._on_bytes(info.num_bytes)
        return info
