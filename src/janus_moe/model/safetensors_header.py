"""Parses the header of one safetensors file and proves that the file holds what it promises.

Format: 8 bytes little-endian length, that many bytes of JSON, then the tensors' data.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from janus_moe.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit

_TYPES_OF_SIZE = {
    8: ("F64", "I64", "U64"),
    4: ("F32", "I32", "U32"),
    2: ("F16", "BF16", "I16", "U16"),
    1: ("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"),
}
DTYPE_SIZES = {dtype: size for size, dtypes in _TYPES_OF_SIZE.items() for dtype in dtypes}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file.

    file: where it is.
    dtype: safetensors' name of it, such as "BF16".
    shape: of its values.
    begin: byte of the file where its data starts.
    version: of the file, see `file_version`.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int = 0
    version: tuple[int, ...] = ()


def file_version(stat: os.stat_result) -> tuple[int, ...]:
    """Differs once a file is replaced, truncated or written to."""
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


def read_header(file: Path) -> dict[str, Entry]:
    """Tensor name -> entry, after checking that no tensor reaches beyond the end of the file."""
    stat = file.stat()
    size, version = stat.st_size, file_version(stat)
    header, data_start = _read_json(file, size)
    entries = {}
    for name, fields in header.items():
        if name == "__metadata__":
            continue
        entry, end = _parse(file, name, fields)
        if data_start + end > size:
            raise CheckpointError(
                f"{file} is truncated: it has {size} bytes, and {name} ends at byte "
                f"{data_start + end}; download it again"
            )
        entries[name] = replace(entry, begin=data_start + entry.begin, version=version)
    return entries


def _read_json(file: Path, size: int) -> tuple[dict[str, Any], int]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"{file} is truncated or no safetensors file: {size} bytes, header of {length}"
            )
        raw = stream.read(length)
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise CheckpointError(f"{file} has an unreadable header: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} has an unreadable header: no JSON object")
    return header, 8 + length


def _parse(file: Path, name: str, fields: Any) -> tuple[Entry, int]:
    """The entry and where its data ends, counted from the end of the header."""
    try:
        dtype, shape = str(fields["dtype"]), tuple(map(int, fields["shape"]))
        begin, end = map(int, fields["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{file} has an unreadable header entry for {name}") from None
    size = DTYPE_SIZES.get(dtype)
    if min((0, begin, *shape)) < 0 or (size is not None and end - begin != size * math.prod(shape)):
        raise CheckpointError(
            f"{file} contradicts itself: {name} is {dtype} {list(shape)} in bytes {begin}..{end}"
        )
    return Entry(file, dtype, shape, begin), end
