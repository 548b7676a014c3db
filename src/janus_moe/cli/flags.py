"""Makes command-line flags, YAML files and help from structs: a field is declared once.

A field's name is its flag and its YAML key, its description the help text. This module does not
know what any setting means.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec
import yaml
from msgspec import Meta
from msgspec.inspect import (
    BoolType,
    CustomType,
    Field,
    FloatType,
    IntType,
    LiteralType,
    Metadata,
    NoneType,
    StructType,
    Type,
    UnionType,
    VarTupleType,
    type_info,
)

from janus_moe.cli.flag_hints import hint
from janus_moe.config import parse_human_int
from janus_moe.errors import ConfigError

S = TypeVar("S", bound=msgspec.Struct)
Values = dict[str, Any]


class UsageError(Exception):
    """A command line that cannot be understood: one line, exit status 2."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One subcommand of `janus`.

    options: structs whose fields are its flags
    run: takes one value of each struct, in their order; returns the exit status
    complete: adds settings that follow from others, before the structs are built
    """

    options: tuple[type[msgspec.Struct], ...]
    run: Callable[..., int]
    complete: Callable[[Values], Values] = dict


def flag(
    description: str,
    *,
    metavar: str | None = None,
    positional: bool = False,
    repeated: bool = False,
    alias: str | None = None,
) -> Meta:
    """Declares how a field looks on the command line.

    description: help text
    metavar: name of its value in the help; None means by its type
    positional: may also be given without its flag
    repeated: one value for each time the flag is given, not several after one flag
    alias: another flag for the same field
    """
    looks = {"metavar": metavar, "positional": positional, "repeated": repeated, "alias": alias}
    return Meta(description=description, extra={k: v for k, v in looks.items() if v})


def parse(prog: str, description: str, command: Command, arguments: Sequence[str]) -> list[Any]:
    """Returns a value of each of the command's structs: defaults, then the file, then the flags.

    Raises UsageError for a wrong command line, ConfigError for values that cannot be.
    """
    parser = _Parser(
        prog=prog,
        usage=_usage(prog, command),
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    if command.options:
        parser.add_argument(
            "--config", metavar="FILE.yaml", help="settings by name; flags override"
        )
    for options in command.options:
        _add_flags(parser, options)
    parser.refuse_unknown(arguments)
    values = vars(parser.parse_args(arguments))
    file = values.pop("config", None)
    merged = command.complete({**(read_yaml(file) if file else {}), **values})
    return [
        build(options, own)
        for options, own in zip(command.options, split(merged, command.options), strict=True)
    ]


def read_yaml(path: str, flag: str = "--config") -> Values:
    """Returns the mapping in a settings file; its keys are flags, with dashes or underscores."""
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{flag} {path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{flag} {path} must be a mapping such as 'expert-instances: 2'")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def build(options: type[S], values: Mapping[str, Any]) -> S:
    """Returns a struct of parsed values; texts such as 32K in a file mean the same as in a flag."""
    for field in _fields(options):
        if field.required and field.encode_name not in values:
            raise UsageError(f"{_flag_of(field)} is missing: {_description(field)}")
    kinds = {field.encode_name: _plain(field.type) for field in _fields(options)}
    try:
        parsed = {name: _parsed(kinds[name], value) for name, value in values.items()}
        return msgspec.convert(parsed, type=options, dec_hook=_decode)
    except (argparse.ArgumentTypeError, ValueError, msgspec.ValidationError) as error:
        raise ConfigError(f"invalid setting: {error}") from None


def split(values: Mapping[str, Any], kinds: Sequence[type[msgspec.Struct]]) -> list[Values]:
    """Distributes values over structs by field name; raises ConfigError for unknown names."""
    fields = [set(kind.__struct_fields__) for kind in kinds]
    known = {name.replace("_", "-") for names in fields for name in names}
    for name in values:
        if not any(name in names for names in fields):
            key = name.replace("_", "-")
            raise ConfigError(f"unknown setting {hint(key, known)}")
    return [{k: v for k, v in values.items() if k in names} for names in fields]


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))

    def refuse_unknown(self, arguments: Sequence[str]) -> None:
        """Raises UsageError with the nearest flag for the first one that does not exist."""
        known = set(self._option_string_actions)
        for argument in arguments:
            if argument == "--":
                return
            name = argument.partition("=")[0]
            if _looks_like_flag(argument) and name not in known:
                raise UsageError(f"there is no flag {hint(name, known)}")


def _looks_like_flag(argument: str) -> bool:
    if not argument.startswith("-") or len(argument) == 1 or " " in argument:
        return False
    try:
        float(argument)
    except ValueError:
        return True
    return False


def _add_flags(parser: argparse.ArgumentParser, options: type[msgspec.Struct]) -> None:
    """Adds one flag for each field; absent flags leave no trace in the parsed namespace."""
    title = (options.__doc__ or options.__name__).splitlines()[0].rstrip(".")
    group = parser.add_argument_group(title)
    for field in _fields(options):
        kind, looks = _plain(field.type), _looks(field)
        text = (_description(field) + _default_note(field.default)).replace("%", "%%")
        names = [_flag_of(field), *([looks["alias"]] if "alias" in looks else [])]
        if isinstance(kind, BoolType):
            group.add_argument(*names, action="store_true", dest=field.name, help=text)
            continue
        value: dict[str, Any] = {"type": _parser_of(kind), "metavar": _metavar(kind, looks)}
        item = kind.item_type if isinstance(kind, VarTupleType) else kind
        if isinstance(item, LiteralType):
            value["choices"] = item.values
        if isinstance(item, LiteralType) and _is_long(item):
            text += f"; one of {', '.join(map(str, item.values))}"
        if isinstance(kind, VarTupleType):
            value |= {"action": "append"} if "repeated" in looks else {"nargs": "+"}
        if "positional" in looks:
            # `?` although it may be required: it may also come by its flag or from a file.
            parser.add_argument(field.name, nargs="?", metavar=field.name.upper(), help=text)
            text = f"same as {field.name.upper()}"
        group.add_argument(*names, dest=field.name, help=text, **value)


def _usage(prog: str, command: Command) -> str:
    words = [prog]
    for field in (field for options in command.options for field in _fields(options)):
        if "positional" in _looks(field):
            words.append(field.name.upper() if field.required else f"[{field.name.upper()}]")
        elif field.required:
            words.append(f"{_flag_of(field)} {_metavar(_plain(field.type), _looks(field))}")
    return " ".join([*words, "[flags]"] if command.options else words)


def _fields(options: type[msgspec.Struct]) -> Sequence[Field]:
    info = type_info(options)
    assert isinstance(info, StructType)
    return info.fields


def _flag_of(field: Field) -> str:
    return "--" + field.name.replace("_", "-")


def _description(field: Field) -> str:
    schema = field.type.extra_json_schema if isinstance(field.type, Metadata) else None
    return str((schema or {}).get("description", ""))


def _looks(field: Field) -> dict[str, Any]:
    return (field.type.extra if isinstance(field.type, Metadata) else None) or {}


def _plain(kind: Type) -> Type:
    return kind.type if isinstance(kind, Metadata) else kind


def _number(text: str) -> int:
    try:
        return parse_human_int(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _real(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _parser_of(kind: Type) -> Callable[[str], Any]:
    if isinstance(kind, VarTupleType):
        return _parser_of(kind.item_type)
    if isinstance(kind, UnionType):
        members = [m for m in kind.types if not isinstance(m, NoneType)]
        words = {v for m in members if isinstance(m, LiteralType) for v in m.values}
        numbers = [m for m in members if isinstance(m, IntType | FloatType)]
        if words and numbers:
            return lambda text: text if text in words else _number(text)
        return _parser_of(members[0])
    if isinstance(kind, IntType):
        return _number
    return _real if isinstance(kind, FloatType) else str


def _parsed(kind: Type, value: Any) -> Any:
    """Returns a value from a file or the command line as `msgspec.convert` takes it."""
    if isinstance(kind, VarTupleType):
        values = value if isinstance(value, list | tuple) else [value]
        return [_parsed(kind.item_type, one) for one in values]
    return _parser_of(kind)(value) if isinstance(value, str) else value


def _decode(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value).expanduser()
    raise ValueError(f"expected a text, got {value!r}")


def _metavar(kind: Type, looks: Mapping[str, Any]) -> str:
    if "metavar" in looks:
        return str(looks["metavar"])
    if isinstance(kind, VarTupleType):
        return _metavar(kind.item_type, looks)
    if isinstance(kind, UnionType):
        return "|".join(_metavar(m, looks) for m in kind.types if not isinstance(m, NoneType))
    if isinstance(kind, LiteralType):
        return "NAME" if _is_long(kind) else "|".join(map(str, kind.values))
    return {IntType: "N", FloatType: "X", CustomType: "FILE"}.get(type(kind), "TEXT")


def _is_long(kind: LiteralType) -> bool:
    """Whether the choices are too many to stand beside the flag."""
    return sum(len(str(value)) + 1 for value in kind.values) > 32


def _default_note(default: object) -> str:
    if default is msgspec.NODEFAULT or default is None or default == ():
        return ""
    if isinstance(default, tuple):
        default = " ".join(map(str, default))
    return f" (default: {default:g})" if isinstance(default, float) else f" (default: {default})"
