"""Reads the JSON facts that ship with this package, strictly."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from janus_moe.errors import ConfigError

DATA = Path(__file__).parent / "data"

T = TypeVar("T")


def names(kind: str) -> tuple[str, ...]:
    """The names of what there are facts for.

    kind: a folder of `data`.
    """
    return tuple(sorted(path.stem for path in (DATA / kind).glob("*.json")))


@cache
def load(kind: str, name: str, type_: type[Any]) -> Any:
    """One file of `data`, decoded as `type_`."""
    return decode(DATA / kind / f"{name}.json", type_)


def decode(path: Path, type_: type[T]) -> T:
    """A JSON file as a struct; raises ConfigError that names the file and what is wrong."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=type_)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, ConfigError) as error:
        raise ConfigError(f"{path} is not a valid {type_.__name__}: {error}") from None
