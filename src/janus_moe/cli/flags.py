"""Makes command-line flags, YAML files and help from structs: a field is declared once.

A field's name is its flag and its YAML key, its description the help text. This module does not
know what any setting means.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence, Set
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
    Type,
    UnionType,
    VarTupleType,
)

from janus_moe import settings
from janus_moe.cli.outputs import OutputKind, require_writable
from janus_moe.config import parse_human_int
from janus_moe.errors import ConfigError
from janus_moe.setting_hints import hint
from janus_moe.settings import Label, fields_of, plain

S = TypeVar("S", bound=msgspec.Struct)
Values = dict[str, Any]
SIZES = frozenset(("bytes", "tokens", "len", "isl", "osl", "size"))
"""Words in the names of settings that are often written as 32K or 1.5G."""
_NEGATIVE = re.compile(r"-\.?\d")


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
    writes: OutputKind | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> Meta:
    """Declares how a field looks on the command line, and what its value may be.

    description: help text
    metavar: name of its value in the help; None means by its type
    positional: may also be given without its flag
    repeated: one value for each time the flag is given, not several after one flag
    alias: another flag for the same field
    writes: what the command writes at this path; None means nothing
    at_least, above, at_most: bounds of a number; None means there is none
    """
    looks = {
        "metavar": metavar,
        "positional": positional,
        "repeated": repeated,
        "alias": alias,
        "writes": writes,
        **settings.bounds(at_least=at_least, above=above, at_most=at_most),
    }
    return Meta(
        description=description,
        extra={k: v for k, v in looks.items() if v is not None and v is not False},
    )


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
    given = vars(parser.parse_args(arguments))
    file = given.pop("config", None)
    from_file = read_yaml(file) if file else {}
    merged = command.complete({**from_file, **given})
    label = _label_of(file, from_file.keys() - given.keys())
    built = [
        build(options, own, label)
        for options, own in zip(
            command.options,
            split(merged, command.options, f"--config {file}: " if file else ""),
            strict=True,
        )
    ]
    for value in built:
        _require_writable(value)
    return built


def flag_name(name: str) -> str:
    """Returns the flag of a field."""
    return f"--{key_of(name)}"


def read_yaml(path: str, flag: str = "--config") -> Values:
    """Returns the mapping in a settings file; its keys are flags, with dashes or underscores."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag} {path} is not UTF-8: byte {error.start}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{flag} {path} is not valid YAML: {_in_one_line(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{flag} {path} must be a mapping such as 'expert-instances: 2'")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def build(options: type[S], values: Mapping[str, Any], label: Label = flag_name) -> S:
    """Returns a struct of parsed values; texts such as 32K in a file mean the same as in a flag.

    label: name of a field -> what it is called where it was given
    """
    kinds = {field.encode_name: plain(field.type) for field in fields_of(options)}
    for field in fields_of(options):
        if field.required and field.encode_name not in values:
            raise UsageError(f"{flag_name(field.name)} is missing: {_description(field)}")
    parsed = {}
    for name, value in values.items():
        try:
            parsed[name] = _parsed(kinds[name], value, name) if name in kinds else value
        except argparse.ArgumentTypeError as error:
            raise ConfigError(f"{label(name)}: {error}") from None
    return settings.build(options, parsed, label)


def split(
    values: Mapping[str, Any], kinds: Sequence[type[msgspec.Struct]], where: str = ""
) -> list[Values]:
    """Distributes values over structs by field name; raises ConfigError for unknown names.

    where: what errors begin with
    """
    fields = [kind.__struct_fields__ for kind in kinds]
    known = [key_of(name) for names in fields for name in names]
    for name in values:
        if key_of(name) not in known:
            raise ConfigError(f"{where}unknown setting {hint(key_of(name), known)}")
    return [{k: v for k, v in values.items() if k in names} for names in fields]


def key_of(name: str) -> str:
    """Returns how a field is called in a settings file."""
    return name.replace("_", "-")


def _label_of(file: str | None, names: Set[str]) -> Label:
    """Returns how settings are called: `names` are keys of the file, all others flags."""

    def label(name: str) -> str:
        return f"--config {file}: {key_of(name)}" if name in names else flag_name(name)

    return label


def _in_one_line(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def _require_writable(options: msgspec.Struct) -> None:
    for field in fields_of(type(options)):
        path = getattr(options, field.name)
        if path is not None and (kind := _looks(field).get("writes")):
            require_writable(path, kind, flag_name(field.name))


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line; a minus before a digit begins a value."""

    def __init__(self, **looks: Any) -> None:
        super().__init__(**looks)
        self._negative_number_matcher = _NEGATIVE

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


class _OneValue(argparse.Action):
    """Takes the value of a setting that has a place of its own beside its flag."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: object = None
    ) -> None:
        before = getattr(namespace, self.dest, values)
        if before != values:
            parser.error(
                f"{self.dest.upper()} and {flag_name(self.dest)} differ, {before!r} and "
                f"{values!r}; give one of them"
            )
        setattr(namespace, self.dest, values)


def _looks_like_flag(argument: str) -> bool:
    is_value = len(argument) == 1 or " " in argument or _NEGATIVE.match(argument)
    return argument.startswith("-") and not is_value


def _add_flags(parser: argparse.ArgumentParser, options: type[msgspec.Struct]) -> None:
    """Adds one flag for each field; absent flags leave no trace in the parsed namespace."""
    title = (options.__doc__ or options.__name__).splitlines()[0].rstrip(".")
    group = parser.add_argument_group(title)
    for field in fields_of(options):
        kind, looks = plain(field.type), _looks(field)
        text = (_description(field) + _default_note(field.default)).replace("%", "%%")
        names = [flag_name(field.name), *([looks["alias"]] if "alias" in looks else [])]
        if isinstance(kind, BoolType):
            group.add_argument(*names, action="store_true", dest=field.name, help=text)
            continue
        value: dict[str, Any] = {
            "type": _parser_of(kind, field.name),
            "metavar": _metavar(kind, looks),
        }
        item = plain(kind.item_type) if isinstance(kind, VarTupleType) else kind
        if isinstance(item, LiteralType):
            value["choices"] = item.values
        if isinstance(item, LiteralType) and _is_long(item):
            text += f"; one of {', '.join(map(str, item.values))}"
        if isinstance(kind, VarTupleType):
            value |= {"action": "append"} if "repeated" in looks else {"nargs": "+"}
        if "positional" in looks:
            place = field.name.upper()
            # `?` although it may be required: it may also come by its flag or from a file.
            value["action"] = _OneValue
            parser.add_argument(field.name, nargs="?", help=text, **value | {"metavar": place})
            text = f"same as {place}"
        group.add_argument(*names, dest=field.name, help=text, **value)


def _usage(prog: str, command: Command) -> str:
    words = [prog]
    for field in (field for options in command.options for field in fields_of(options)):
        if "positional" in _looks(field):
            words.append(field.name.upper() if field.required else f"[{field.name.upper()}]")
        elif field.required:
            words.append(f"{flag_name(field.name)} {_metavar(plain(field.type), _looks(field))}")
    return " ".join([*words, "[flags]"] if command.options else words)


def _description(field: Field) -> str:
    schema = field.type.extra_json_schema if isinstance(field.type, Metadata) else None
    return str((schema or {}).get("description", ""))


def _looks(field: Field) -> dict[str, Any]:
    return (field.type.extra if isinstance(field.type, Metadata) else None) or {}


def _number(text: str, name: str) -> int:
    try:
        return parse_human_int(text)
    except ConfigError as error:
        size = "; write e.g. 4096, 4K or 1.5G" if SIZES.intersection(name.split("_")) else ""
        raise argparse.ArgumentTypeError(f"{error}{size}") from None


def _real(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8") from None
    return text


def _parser_of(kind: Type, name: str) -> Callable[[str], Any]:
    """Returns what makes a value of a text.

    name: of the field
    """
    kind = plain(kind)
    if isinstance(kind, VarTupleType):
        return _parser_of(kind.item_type, name)
    if isinstance(kind, UnionType):
        members = [plain(m) for m in kind.types if not isinstance(m, NoneType)]
        words = {v for m in members if isinstance(m, LiteralType) for v in m.values}
        numbers = [m for m in members if isinstance(m, IntType | FloatType)]
        if words and numbers:
            return lambda text: text if text in words else _number(text, name)
        return _parser_of(members[0], name)
    if isinstance(kind, IntType):
        return lambda text: _number(text, name)
    return _real if isinstance(kind, FloatType) else _text


def _parsed(kind: Type, value: Any, name: str) -> Any:
    """Returns a value from a file or the command line as a struct takes it."""
    if isinstance(kind, VarTupleType):
        values = value if isinstance(value, list | tuple) else [value]
        return [_parsed(plain(kind.item_type), one, name) for one in values]
    return _parser_of(kind, name)(value) if isinstance(value, str) else value


def _metavar(kind: Type, looks: Mapping[str, Any]) -> str:
    if "metavar" in looks:
        return str(looks["metavar"])
    if isinstance(kind, VarTupleType):
        return _metavar(plain(kind.item_type), looks)
    if isinstance(kind, UnionType):
        return "|".join(
            _metavar(plain(m), looks) for m in kind.types if not isinstance(m, NoneType)
        )
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
