"""The state of an object as plain values, field by field, so that two of them can be compared.

Fields of classes that do not exist yet are covered as well: everything is followed that is not
named here as no state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import msgspec
import numpy as np
from torch import Tensor

CLOCKS = {"arrived_at", "started_at"}
"""Fields of which only whether they are set is state."""


class Freezer:
    """Walks an object once; an object met again is the number of its first visit.

    leave_out: fields that are no state, such as ports and weights.
    """

    def __init__(self, leave_out: Set[str]) -> None:
        self._leave_out = leave_out
        self._seen: dict[int, tuple[int, Any]] = {}  # keeps what it has seen alive

    def freeze(self, value: Any) -> Any:
        match value:
            case None | bool() | int() | float() | str() | bytes():
                return value
            case Tensor():
                return (tuple(value.shape), value.numpy().tobytes())
            case np.ndarray():
                return (value.shape, value.tobytes())
            case msgspec.Struct():
                return repr(value)
        if id(value) in self._seen:
            return ("seen", self._seen[id(value)][0])
        self._seen[id(value)] = (len(self._seen), value)
        match value:
            case Mapping():
                return [(self.freeze(key), self.freeze(one)) for key, one in value.items()]
            case Set():
                return sorted(map(repr, value))
            case Sequence():
                return [self.freeze(one) for one in value]
        return (type(value).__name__, self._fields(value))

    def _fields(self, value: Any) -> dict[str, Any]:
        names = [*getattr(value, "__dict__", ())]
        for kind in type(value).__mro__:
            slots = kind.__dict__.get("__slots__", ())
            names += [slots] if isinstance(slots, str) else slots
        fields = {name: getattr(value, name) for name in names if name not in self._leave_out}
        return {
            name: (one is not None) if name in CLOCKS else self.freeze(one)
            for name, one in fields.items()
        }


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two frozen states differ."""
    if type(one) is not type(other):
        return [f"{path}: {one!r} is not {other!r}"]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{path}: fields {sorted(one)} and {sorted(other)}"]
        return [d for key in one for d in differences(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [d for place, two in pairs for d in differences(*two, f"{path}[{place}]")]
    return [] if one == other else [f"{path}: {str(one)[:80]} is not {str(other)[:80]}"]
