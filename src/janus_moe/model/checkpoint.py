"""A folder of safetensors files: what is in it, whether that is enough, and single tensors of it.

Opening reads headers only. Each worker reads just the tensors it owns. This module knows no
architecture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from janus_moe.errors import CheckpointError
from janus_moe.model.safetensors_header import Entry, read_header
from janus_moe.model.source_files import SourceFiles
from janus_moe.model.tensors import TensorInfo, all_tensors
from janus_moe.spec import ModelSpec

OnBytes = Callable[[int], None]

STORED_DTYPES: Mapping[str, torch.dtype] = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
"""Safetensors' names of the dtypes that can be read."""
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def ignore_bytes(num_bytes: int) -> None:
    """The progress callback of callers who want none."""


class Checkpoint:
    """The tensors of one folder."""

    def __init__(self, folder: Path, entries: dict[str, Entry]) -> None:
        """A folder whose headers have been read.

        entries: name of a tensor -> where and what it is.
        """
        self.folder = folder
        self.entries = entries
        self.files = SourceFiles(entries.values())
        self._open_files: dict[Path, Any] = {}

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Reads and checks the headers of model.safetensors, or of all shards of its index."""
        if (folder / _INDEX).is_file():
            return cls(folder, _read_shards(folder))
        if (folder / _SINGLE).is_file():
            return cls(folder, read_header(folder / _SINGLE))
        raise CheckpointError(
            f"{folder} has neither {_SINGLE} nor {_INDEX}; other formats (.bin, .pt, .gguf) have "
            "to be converted to safetensors first"
        )

    def require(self, infos: Iterable[TensorInfo]) -> None:
        """Raises CheckpointError unless all these tensors exist, readable and of the right shape.

        Several missing tensors are one error, for they have one cause.
        """
        missing = []
        for info in infos:
            entry = self.entries.get(info.name)
            if entry is None:
                missing.append(info.name)
            else:
                _check_entry(info, entry)
        if missing:
            others = f" and {len(missing) - 1} more tensors" if len(missing) > 1 else ""
            raise CheckpointError(
                f"{self.folder} lacks {missing[0]}{others}; the download may be incomplete, or "
                "config.json belongs to another model"
            )

    def read(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """One tensor, converted and moved."""
        return self.view(name).to(device=device, dtype=dtype, copy=True)

    def view(self, name: str) -> Tensor:
        """One tensor as stored; its memory is the file's and must not be written to."""
        entry = self.entries.get(name)
        if entry is None:
            raise CheckpointError(f"{self.folder} lacks {name}")
        if entry.file not in self._open_files:
            self._open_files[entry.file] = safe_open(entry.file, framework="pt")
        tensor: Tensor = self._open_files[entry.file].get_tensor(name)
        return tensor


def validate(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Checks, before any weight is read, that every tensor any worker will need is there."""
    checkpoint.require(all_tensors(spec))


def _check_entry(info: TensorInfo, entry: Entry) -> None:
    if entry.shape != info.shape:
        raise CheckpointError(
            f"{entry.file}: {info.name} has shape {list(entry.shape)}, config.json asks for "
            f"{list(info.shape)}"
        )
    if entry.dtype not in STORED_DTYPES:
        raise CheckpointError(
            f"{entry.file}: {info.name} is stored as {entry.dtype}, which is not supported; "
            f"convert the checkpoint to bfloat16 (readable are {', '.join(STORED_DTYPES)})"
        )


def _read_shards(folder: Path) -> dict[str, Entry]:
    weight_map = _weight_map(folder / _INDEX)
    found: dict[str, Entry] = {}
    for shard in sorted(set(weight_map.values())):
        file = folder / shard
        if Path(shard).name != shard:
            raise CheckpointError(f"{folder / _INDEX} points outside its folder: {shard!r}")
        if not file.is_file():
            tensor = next(name for name, where in weight_map.items() if where == shard)
            raise CheckpointError(
                f"{file} is missing, {folder / _INDEX} says it holds {tensor}; download it again"
            )
        found |= read_header(file)
    for name, shard in weight_map.items():
        if name not in found or found[name].file.name != shard:
            raise CheckpointError(
                f"{folder / shard} lacks {name}, which {folder / _INDEX} says it holds"
            )
    return found


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{index} is not a readable index (no weight_map)") from None
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise CheckpointError(f"{index} is not a readable index (weight_map is no name map)")
    return weight_map
