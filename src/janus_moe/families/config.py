"""Reads keys of a config.json: typed values, contradictions as errors, obstacles as a list.

A contradiction means that the file describes no model. An obstacle means that it describes one
which the engine cannot run; a planner can still plan for it. This module knows no architecture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from janus_moe.errors import CheckpointError


class Config:
    """A config.json while it is read."""

    def __init__(self, raw: Mapping[str, Any], place: str = "config.json") -> None:
        """A file of which nothing has been read.

        place: what errors call it.
        """
        self._raw, self._place = raw, place
        self.obstacles: list[str] = []

    def __contains__(self, key: str) -> bool:
        """Whether a key is there, be it null."""
        return key in self._raw

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key; the default where it is absent or null."""
        value = self._raw.get(key)
        return default if value is None else value

    def size(self, *keys: str, default: int | None = None) -> int:
        """A whole number of at least 1 under the first of these keys that is there."""
        key = next((key for key in keys if key in self._raw), keys[0])
        value = self.get(key, default)
        if value is None and key not in self._raw:
            raise CheckpointError(f"{self._place} has no {' or '.join(keys)}")
        self.require(_is_whole(value) and value >= 1, f"{key} must be 1 or more, found {value!r}")
        return int(value)

    def count(self, key: str, default: int = 0) -> int:
        """A whole number of at least 0; null means 0."""
        value = self._raw.get(key, default) or 0
        self.require(_is_whole(value) and value >= 0, f"{key} must be 0 or more, found {value!r}")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number of at least 0."""
        value = self.get(key, default)
        if value is None:
            raise CheckpointError(f"{self._place} has no {key}")
        good = isinstance(value, int | float) and not isinstance(value, bool)
        good = good and 0 <= value < math.inf
        self.require(good, f"{key} must be a number of 0 or more, found {value!r}")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self.number(key, default)
        self.require(value > 0, f"{key} must be above 0")
        return value

    def items(self, key: str, default: Sequence[Any] = ()) -> Sequence[Any]:
        """A list."""
        value = self.get(key, default)
        good = isinstance(value, Sequence) and not isinstance(value, str)
        self.require(good, f"{key} must be a list, found {value!r}")
        return list(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        self.require(isinstance(value, bool), f"{key} must be true or false, found {value!r}")
        return bool(value)

    def part(self, *keys: str) -> Config:
        """The object under the first of these keys that has one; empty where none has."""
        for key in keys:
            if self.get(key):
                self.require(isinstance(self.get(key), Mapping), f"{key} must be an object")
                return Config(self.get(key), f"{self._place}, {key}")
        return Config({}, self._place)

    def require(self, condition: bool, problem: str) -> None:
        """Raises CheckpointError unless the condition holds."""
        if not condition:
            raise CheckpointError(f"{self._place}: {problem}")

    def only(self, key: str, *supported: object) -> None:
        """Notes an obstacle unless a key is absent or has one of the values that are computed."""
        value = self.get(key)
        self.serve_only_if(
            value is None or value in supported,
            f"{key}={value!r} is not supported, only {' or '.join(map(repr, supported))}",
        )

    def serve_only_if(self, condition: bool, obstacle: str) -> None:
        """Notes why the engine cannot run the model, unless the condition holds."""
        if not condition:
            self.obstacles.append(obstacle)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
