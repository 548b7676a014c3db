"""Experts read into slots of a running model, a few rows at a time.

Files are read, not mapped: a file that shrank or was replaced since the start is then an error
like any other, where a mapping would end the process or give other weights. Knows nothing of
placement, threads or pace.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from janus_moe.errors import CheckpointError
from janus_moe.model.checkpoint import STORED_DTYPES, Checkpoint
from janus_moe.model.expert_block import ExpertModel
from janus_moe.model.safetensors_header import DTYPE_SIZES, Entry, file_version
from janus_moe.model.tensors import TensorTable


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of one tensor and where they go.

    entry: the tensor in its file.
    target: [rows, columns], where the rows go.
    first_row: of the tensor in the file.
    num_bytes: bytes of the rows in the file.
    """

    entry: Entry
    target: Tensor
    first_row: int
    num_bytes: int

    def load(self) -> None:
        """Raises CheckpointError; the target may then be partly written."""
        stored = torch.frombuffer(self._read(), dtype=STORED_DTYPES[self.entry.dtype])
        rows = stored.view(self.target.shape)
        if rows.dtype == self.target.dtype == torch.float32 and self.target.device.type == "cpu":
            np.copyto(self.target.numpy(), rows.numpy())  # one thread, whatever torch may use
        else:
            self.target.copy_(rows)

    def _read(self) -> bytearray:
        buffer = bytearray(self.num_bytes)
        name = self.entry.file.name
        begin = self.entry.begin + self.first_row * (self.num_bytes // self.target.shape[0])
        try:
            with self.entry.file.open("rb", buffering=0) as file:
                if file_version(os.fstat(file.fileno())) != self.entry.version:
                    raise CheckpointError(
                        f"{name} was changed since the start; restart to use the new one"
                    )
                file.seek(begin)
                done = file.readinto(buffer)
        except OSError as error:
            raise CheckpointError(f"{name} cannot be read: {error.strerror}") from error
        if done != self.num_bytes:
            raise CheckpointError(f"{name} has {done} of {self.num_bytes} bytes at byte {begin}")
        return buffer


def expert_pieces(
    model: ExpertModel,
    checkpoint: Checkpoint,
    layer: int,
    expert: int,
    slot: int,
    max_bytes: int,
) -> Iterator[Piece]:
    """What fills a slot of a model layer with an expert, in order.

    slot: physical slot.
    max_bytes: of a piece in the file, except where a single row has more.
    """
    table, weights = TensorTable(model.spec), model.layers[layer]
    width = model.spec.moe.intermediate_size
    for role, target in (
        ("expert_gate", weights.gate_up[slot, :width]),
        ("expert_up", weights.gate_up[slot, width:]),
        ("expert_down", weights.down[slot]),
    ):
        info = table.info(role, layer, expert)
        checkpoint.require([info])
        entry = checkpoint.entries[info.name]
        row_bytes = entry.shape[1] * DTYPE_SIZES[entry.dtype]
        step = max(1, max_bytes // row_bytes)
        for first in range(0, entry.shape[0], step):
            rows = target[first : first + step]
            yield Piece(entry, rows, first, rows.shape[0] * row_bytes)
