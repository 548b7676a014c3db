"""Experts read into slots of a running model, a few rows at a time.

Files are read, not mapped: a file that shrank or was replaced since the start is then an error
like any other, where a mapping would end the process or give other weights. A file that vanished
can be read again once the same one is back. Knows nothing of placement, threads or pace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from janus_moe.errors import CheckpointError
from janus_moe.model.checkpoint import STORED_DTYPES, Checkpoint
from janus_moe.model.expert_block import ExpertModel
from janus_moe.model.safetensors_header import DTYPE_SIZES, Entry
from janus_moe.model.slot_storage import raw_bytes
from janus_moe.model.source_files import SourceFiles
from janus_moe.model.tensors import TensorTable


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of one tensor and where they go.

    entry: the tensor in its file.
    files: says whether it is still the file that was opened.
    target: [rows, columns], where the rows go.
    first_row: of the tensor in the file.
    num_bytes: bytes of the rows in the file.
    """

    entry: Entry
    files: SourceFiles
    target: Tensor
    first_row: int
    num_bytes: int

    def load(self) -> None:
        """Raises CheckpointError; the target may then be partly written."""
        stored = STORED_DTYPES[self.entry.dtype]
        if stored == self.target.dtype and self.target.device.type == "cpu":
            self._read_into(raw_bytes(self.target).data)
        else:
            buffer = bytearray(self.num_bytes)
            self._read_into(memoryview(buffer))
            self.target.copy_(torch.frombuffer(buffer, dtype=stored).view(self.target.shape))

    def _read_into(self, buffer: memoryview) -> None:
        name = self.entry.file.name
        begin = self.entry.begin + self.first_row * (self.num_bytes // self.target.shape[0])
        try:
            with self.entry.file.open("rb", buffering=0) as file:
                self.files.check(self.entry.file, file)
                file.seek(begin)
                done = file.readinto(buffer)
        except OSError as error:
            raise CheckpointError(f"{name} cannot be read: {error.strerror}") from error
        if done != self.num_bytes:
            raise CheckpointError(f"{name} has {done} of {self.num_bytes} bytes at byte {begin}")


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
            yield Piece(entry, checkpoint.files, rows, first, rows.shape[0] * row_bytes)
