"""Command-line flags and YAML files from the settings structs: one source for both.

Knows nothing of what the settings mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml
from msgspec.inspect import (
    BoolType,
    Field,
    FloatType,
    IntType,
    LiteralType,
    Metadata,
    NoneType,
    StructType,
    Type,
    UnionType,
    type_info,
)

from janus_moe.config import parse_human_int
from janus_moe.errors import ConfigError

S = TypeVar("S", bound=msgspec.Struct)


def add_flags(parser: argparse.ArgumentParser, settings: type[msgspec.Struct]) -> None:
    """One `--flag` per field; absent flags leave no trace in the parsed namespace."""
    group = parser.add_argument_group(settings.__name__.removesuffix("Config").lower())
    for field in _fields(settings):
        kind, description = _plain(field.type), ""
        if isinstance(field.type, Metadata):
            description = (field.type.extra_json_schema or {}).get("description", "")
        flag = "--" + field.name.replace("_", "-")
        text = description.replace("%", "%%")
        if isinstance(kind, BoolType):
            group.add_argument(
                flag, action="store_true", default=argparse.SUPPRESS, dest=field.name, help=text
            )
            continue
        group.add_argument(
            flag,
            dest=field.name,
            type=_parser_of(kind),
            choices=kind.values if isinstance(kind, LiteralType) else None,
            metavar=None if isinstance(kind, LiteralType) else _metavar(kind),
            default=argparse.SUPPRESS,
            help=text + _default_note(field.default),
        )


def read_yaml(path: str, flag: str = "--config") -> dict[str, Any]:
    """The mapping in a settings file; keys as flags, with dashes or underscores."""
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{flag} {path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{flag} {path} must be a mapping such as 'expert-instances: 2'")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def build(settings: type[S], values: Mapping[str, Any]) -> S:
    """Settings from parsed values; texts such as 32K in a file mean the same as in a flag."""
    parsers = {field.name: _parser_of(_plain(field.type)) for field in _fields(settings)}
    try:
        parsed = {k: parsers[k](v) if isinstance(v, str) else v for k, v in values.items()}
        return msgspec.convert(parsed, type=settings)
    except (argparse.ArgumentTypeError, ValueError, msgspec.ValidationError) as error:
        raise ConfigError(f"invalid setting: {error}") from None


def split(values: Mapping[str, Any], kinds: Sequence[type[msgspec.Struct]]) -> list[dict[str, Any]]:
    """Distributes values over settings structs by field name; unknown names raise."""
    fields = [set(kind.__struct_fields__) for kind in kinds]
    unknown = sorted(name for name in values if not any(name in names for names in fields))
    if unknown:
        raise ConfigError(
            f"unknown setting {', '.join(unknown)}; `janus serve --help` lists all of them"
        )
    return [{k: v for k, v in values.items() if k in names} for names in fields]


def _fields(settings: type[msgspec.Struct]) -> Sequence[Field]:
    info = type_info(settings)
    assert isinstance(info, StructType)
    return info.fields


def _plain(kind: Type) -> Type:
    return kind.type if isinstance(kind, Metadata) else kind


def _number(text: str) -> int:
    try:
        return parse_human_int(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser_of(kind: Type) -> Any:
    if isinstance(kind, UnionType):
        members = [m for m in kind.types if not isinstance(m, NoneType)]
        words = {v for m in members if isinstance(m, LiteralType) for v in m.values}
        numbers = [m for m in members if isinstance(m, IntType | FloatType)]
        if words and numbers:
            return lambda text: text if text in words else _number(text)
        return _parser_of(members[0])
    if isinstance(kind, IntType):
        return _number
    return float if isinstance(kind, FloatType) else str


def _metavar(kind: Type) -> str:
    if isinstance(kind, UnionType):
        return "|".join(_metavar(m) for m in kind.types if not isinstance(m, NoneType))
    if isinstance(kind, LiteralType):
        return "|".join(str(value) for value in kind.values)
    return {IntType: "N", FloatType: "SECONDS"}.get(type(kind), "TEXT")


def _default_note(default: object) -> str:
    shown = default is not msgspec.NODEFAULT and default is not None
    return f" (default: {default})" if shown else ""
