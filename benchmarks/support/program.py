"""A benchmark's command line: flags in, a table and a JSON file out.

    if __name__ == "__main__":
        main(__doc__, measure, flag("--rounds", type=int, default=30))

What is measured is not known here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.support.hosts import HostsUnavailable
from benchmarks.support.report import machine_facts, print_table, write_json

Result = Mapping[str, Any]
"""What a benchmark found. `rows` is printed as a table, as are scalars; all of it is written."""

Measure = Callable[[argparse.Namespace], Result]


class Flag(NamedTuple):
    """One argument of a program, as `add_argument` takes it."""

    name: str
    options: dict[str, Any]


def flag(name: str, **options: Any) -> Flag:
    return Flag(name, options)


def main(doc: str | None, measure: Measure, *flags: Flag) -> None:
    """Runs a benchmark, prints what it found and writes it to `--json` where that is given.

    doc: docstring of the program; its first line is the help text.
    measure: parsed flags -> what was found.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    for one in flags:
        parser.add_argument(one.name, **one.options)
    parser.add_argument("--json", type=Path, help="write machine, flags and all figures here")
    options = parser.parse_args()
    try:
        result = measure(options)
    except HostsUnavailable as error:
        raise SystemExit(f"{parser.prog}: {error}") from None
    show(result)
    if options.json:
        told = {key: _plain(value) for key, value in vars(options).items() if key != "json"}
        write_json(options.json, {"machine": machine_facts(), "flags": told, **result})


def show(result: Result) -> None:
    """Prints the scalar columns of `rows`, and every scalar beside them."""
    rows: Sequence[Mapping[str, Any]] = result.get("rows", ())
    print_table([_scalars(row) for row in rows])
    for key, value in _scalars(result).items():
        print(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}")


def _scalars(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in mapping.items() if isinstance(v, str | int | float | None)}


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Path) else value  # no machine's folders
