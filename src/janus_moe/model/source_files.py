"""Whether the files of a checkpoint are still those that were opened, while a service runs.

A file that has not been touched is known by its status. One that was touched is the same file if
its size, its header and samples of its data are: a header alone is the same for every model of one
shape. Files are read, never mapped. It does not know what a file's tensors are used for.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

from janus_moe.errors import CheckpointError
from janus_moe.model.safetensors_header import MAX_HEADER_BYTES, Entry, file_version

logger = logging.getLogger(__name__)

SAMPLES = 16
SAMPLE_BYTES = 4096


class SourceFiles:
    """The files of some tensors; several threads may ask.

    entries: the tensors, with the version of their file when its header was read.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._versions = {entry.file: entry.version for entry in entries}
        self._fingerprints: dict[Path, bytes] = {}

    def remember(self) -> None:
        """Takes the fingerprint of each file that has not changed so far.

        Any other file is known by its status alone.
        """
        for file, version in self._versions.items():
            try:
                with file.open("rb", buffering=0) as stream:
                    if file_version(os.fstat(stream.fileno())) == version:
                        self._fingerprints.setdefault(file, fingerprint(stream))
            except OSError as error:
                logger.warning("%s cannot be read: %s", file, error.strerror)

    def check(self, file: Path, stream: FileIO) -> None:
        """Raises CheckpointError, which names the file, unless the open file is the same one.

        stream: `file`, opened without a buffer; its position changes.
        """
        version = file_version(os.fstat(stream.fileno()))
        if version == self._versions[file]:
            return
        expected = self._fingerprints.get(file)
        if expected is None or fingerprint(stream) != expected:
            raise CheckpointError(
                f"{file.name} was changed since the start; put the same file back, or restart to "
                "use the new one"
            )
        self._versions[file] = version


def fingerprint(stream: FileIO) -> bytes:
    """SHA-256 of a safetensors file's size, its header and evenly spaced samples of its data."""
    size = os.fstat(stream.fileno()).st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    stream.seek(0)
    length = stream.read(8)
    digest.update(length)
    digest.update(stream.read(min(int.from_bytes(length, "little"), MAX_HEADER_BYTES)))
    data_start = stream.tell()
    for sample in range(SAMPLES):
        last = max(data_start, size - SAMPLE_BYTES)
        stream.seek(data_start + (last - data_start) * sample // (SAMPLES - 1))
        digest.update(stream.read(SAMPLE_BYTES))
    return digest.digest()
