"""Makes a struct of named settings, or says which of them is wrong and what it may be.

It does not know where values come from (flags, a file, Python), nor what any setting means.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.inspect import (
    BoolType,
    CustomType,
    Field,
    FloatType,
    IntType,
    LiteralType,
    Metadata,
    NoneType,
    StrType,
    StructType,
    Type,
    UnionType,
    VarTupleType,
    type_info,
)

from janus_moe.errors import ConfigError
from janus_moe.setting_hints import hint

S = TypeVar("S", bound=msgspec.Struct)
Label = Callable[[str], str]
"""Name of a field -> what the setting is called where it was given."""
SMALLEST, LARGEST = -(2**63), 2**63 - 1
"""Whole numbers that every part of the program can hold."""
AT_LEAST, ABOVE, AT_MOST = "at least", "above", "at most"
HOLDS: dict[str, Callable[[float, float], bool]] = {
    AT_LEAST: operator.ge,
    ABOVE: operator.gt,
    AT_MOST: operator.le,
}
"""Kind of a bound, in words -> whether a number keeps to it."""


def build(options: type[S], values: Mapping[str, Any], label: Label = str) -> S:
    """Returns a struct of values; raises ConfigError that names a setting and what it may be."""
    known = {field.encode_name: field for field in fields_of(options)}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"unknown setting {_unknown(name, known)}")
        if complaint := _complaint(known[name], value):
            raise ConfigError(f"{label(name)} {complaint}")
    try:
        return msgspec.convert(values, type=options, dec_hook=_decode)
    except msgspec.ValidationError as error:
        path = str(error).partition(" - at `$.")[2]
        wrong = [name for name in known if path.startswith((f"{name}`", f"{name}["))]
        if not wrong:
            raise ConfigError(f"invalid setting: {error}") from None
        kind, value = plain(known[wrong[0]].type), values[wrong[0]]
        raise ConfigError(
            f"{label(wrong[0])} must be {expected(kind)}{_shown(kind, value)}"
        ) from None


def _unknown(name: str, known: Collection[str]) -> str:
    """Returns the name and the nearest one, with underscores."""
    dashed = {one.replace("_", "-"): one for one in (*known, name)}
    text = hint(name.replace("_", "-"), [one.replace("_", "-") for one in known])
    for dashes, one in dashed.items():
        text = text.replace(dashes, one)
    return text


def fields_of(options: type[msgspec.Struct]) -> Sequence[Field]:
    """Returns what is known about a struct's fields."""
    info = type_info(options)
    assert isinstance(info, StructType)
    return info.fields


def plain(kind: Type) -> Type:
    """Returns the type without its description."""
    return kind.type if isinstance(kind, Metadata) else kind


def expected(kind: Type) -> str:
    """Returns what a value of this type is, in words."""
    match kind:
        case UnionType():
            return " or ".join(expected(one) for one in kind.types if not _is_none(one))
        case VarTupleType():
            return f"a list, each {expected(plain(kind.item_type))}"
        case LiteralType():
            return f"one of {', '.join(map(str, kind.values))}"
        case BoolType():
            return "true or false"
        case IntType():
            return "a whole number"
        case FloatType():
            return "a number"
        case CustomType():
            return "a path"
    return "a text (in a file: in quotes)"


def bounds(
    *, at_least: float | None = None, above: float | None = None, at_most: float | None = None
) -> dict[str, float]:
    """Returns what a field's `Meta(extra=...)` holds for a number, or for numbers in a list."""
    given = {AT_LEAST: at_least, ABOVE: above, AT_MOST: at_most}
    return {words: bound for words, bound in given.items() if bound is not None}


def _complaint(field: Field, value: Any) -> str | None:
    """Returns why a value is out of bounds; None means that it is not."""
    extra = (field.type.extra if isinstance(field.type, Metadata) else None) or {}
    kind = plain(field.type)
    if isinstance(kind, VarTupleType) and isinstance(value, list | tuple):
        if not value and field.default:
            return "must not be empty"
        kinds, values = list(_members(plain(kind.item_type))), value
    else:
        kinds, values = list(_members(kind)), [value]
    if "" in values and any(isinstance(one, StrType | CustomType) for one in kinds):
        return "must not be empty"
    if not any(isinstance(one, IntType | FloatType) for one in kinds):
        return None
    numbers = [one for one in values if isinstance(one, int | float) and type(one) is not bool]
    return next((found for one in numbers if (found := _out_of_bounds(one, extra))), None)


def _out_of_bounds(value: float, extra: Mapping[str, Any]) -> str | None:
    given = {words: extra[words] for words in HOLDS if words in extra}
    if not all(HOLDS[words](value, bound) for words, bound in given.items()):
        allowed = " and ".join(f"{words} {bound}" for words, bound in given.items())
        return f"must be {allowed}, got {value}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, got {value}"
    if isinstance(value, int) and not SMALLEST <= value <= LARGEST:
        return f"must fit into 64 bits, got {value}"
    return None


def _members(kind: Type) -> Iterator[Type]:
    for one in kind.types if isinstance(kind, UnionType) else (kind,):
        yield plain(one)


def _shown(kind: Type, value: Any) -> str:
    """A text may be a secret, so what was given instead of one is not repeated."""
    texts = any(isinstance(one, StrType) for one in _members(kind))
    return "" if texts else f", got {str(value)!r:.80}"


def _is_none(kind: Type) -> bool:
    return isinstance(kind, NoneType)


def _decode(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value).expanduser()
    raise ValueError(f"expected a text, got {value!r}")
