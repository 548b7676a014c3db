"""Files that commands write: what cannot be written is refused before the work, not after it.

It does not know what is in the files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from rich.console import Console

from janus_moe.errors import ConfigError

OutputKind = Literal["file", "folder"]


class ReportConsole(Console):
    """Standard output for reports; a reader that has gone is an error like any other."""

    def __init__(self) -> None:
        super().__init__(highlight=False)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def require_writable(path: Path, kind: OutputKind, flag: str) -> None:
    """Raises ConfigError unless a file or folder can be written there; leaves nothing behind."""
    try:
        _try_folder(path) if kind == "folder" else _try_file(path)
    except OSError as error:
        raise ConfigError(
            f"{flag} {path} cannot be written: {error.strerror}; name a {kind} where that is "
            "possible"
        ) from None


def write_text(path: Path, text: str) -> None:
    """Writes a file; raises ConfigError where the disk is full or the folder has gone."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def _try_file(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(0, "it is a folder")
    if path.exists():
        _require_access(path)
        return
    path.touch()
    path.unlink()


def _try_folder(path: Path) -> None:
    """The nearest folder that exists will get those that are missing."""
    existing = _first_existing([path, *path.absolute().parents])
    if not existing.is_dir():
        raise NotADirectoryError(0, f"{existing} is not a folder")
    _require_access(existing)


def _first_existing(paths: Iterable[Path]) -> Path:
    return next(path for path in paths if path.exists())


def _require_access(path: Path) -> None:
    if not os.access(path, os.W_OK):
        raise PermissionError(0, "no permission")
