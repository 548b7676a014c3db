"""The rules the code base keeps: who may import whom, what is pure, what is never used, sizes."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

PACKAGE = "janus_moe"
SOURCE = Path(__file__).parent.parent / "src" / PACKAGE

# A row imports rows above it; within a row, only its own package and what SAME_ROW adds.
ROWS: tuple[tuple[str, ...], ...] = (
    # bundled is data
    ("spec", "errors", "tracing", "compiled", "families", "bundled", "setting_hints"),
    ("policy", "planner.latency", "config", "messages", "torch_dtypes", "settings"),
    ("planner.search", "planner.simulation", "kernels", "transport"),
    ("model",),
    ("attention", "experts"),
    ("engine",),
    ("cluster",),
    ("startup_view",),
    ("server", "llm", "profiling"),
    ("cli",),
)
SAME_ROW = {
    "tracing": {"errors"},
    "spec": {"errors"},
    "families": {"spec", "errors"},
    "messages": {"config"},
    "planner.simulation": {"planner.search"},
}

# A library for anybody, without a deep-learning framework.
PURE = ("spec", "families", "policy", "planner.latency", "planner.search", "planner.simulation")
HEAVY = ("torch", "transformers")

# Who may read pool sizes from the settings: those who plan with them, before anything runs.
# Everybody else asks the membership, which changes while the settings do not.
POOL_SIZE_READERS = (
    "config.py",
    "cluster/deployment_plan.py",
    "cluster/hosts/gathering.py",
    "profiling/plan.py",
    "cli/simulate_routing.py",  # its own arguments
)

# The folders and single modules of a package are its parts; so many pairs may import each other.
MAX_PART_IMPORTS = {"transport": 20}

MAX_LINES = 400
MAX_MEDIAN_LINES = 150


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def unit_of(parts: Sequence[str]) -> str:
    """The package or module of the table that a dotted name below the package belongs to."""
    return ".".join(parts[:2] if parts[0] == "planner" else parts[:1])


def unit_of_file(path: Path) -> str:
    return unit_of(path.relative_to(SOURCE).with_suffix("").parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, relative ones resolved, names included."""
    package = (PACKAGE, *path.relative_to(SOURCE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join((*base, *filter(None, [node.module])))
            for alias in node.names:
                yield node.lineno, f"{source}.{alias.name}"


def allowed(unit: str) -> set[str]:
    row = next(index for index, units in enumerate(ROWS) if unit in units)
    above = {name for units in ROWS[:row] for name in units}
    return above | {unit} | SAME_ROW.get(unit, set())


def known(unit: str) -> bool:
    return any(unit in units for units in ROWS)


def test_every_package_has_a_place_in_the_table() -> None:
    units = {unit_of_file(path) for path in modules()} - {"__init__", "planner.__init__"}
    assert not {unit for unit in units if not known(unit)}, "add it to a row of ROWS"


def test_architecture_md_has_the_same_table() -> None:
    page = (SOURCE.parent.parent / "ARCHITECTURE.md").read_text()
    rows = re.findall(r"^\| \d+ \| (.+?) \| (.*?)\|", page, re.MULTILINE)
    same_row = {
        package: set(re.findall(r"`(.+?)`", targets))
        for _, besides in rows
        for packages, targets in re.findall(r"([^;]+?) -> ([^;(]+)", besides)
        for package in re.findall(r"`(.+?)`", packages)
    }
    assert [set(re.findall(r"`(.+?)`", packages)) for packages, _ in rows] == list(map(set, ROWS))
    assert same_row == SAME_ROW


def test_architecture_md_names_every_control_message() -> None:
    page = (SOURCE.parent.parent / "ARCHITECTURE.md").read_text()
    messages = {
        node.name
        for path in (SOURCE / "messages").glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and "Message" in map(ast.unparse, node.bases)
    }
    assert len(messages) > 20
    assert not sorted(name for name in messages if f"`{name}`" not in page)


def test_rows_import_only_rows_above() -> None:
    wrong = []
    for path in modules():
        unit = unit_of_file(path)
        if not known(unit):  # the package's own __init__ and __main__
            continue
        for line, name in imports(path):
            target = unit_of(name.split(".")[1:]) if name.startswith(f"{PACKAGE}.") else None
            if target and known(target) and target not in allowed(unit):
                wrong.append(f"{path.relative_to(SOURCE)}:{line} imports {target}")
    assert not wrong, wrong


@pytest.mark.parametrize(("pool", "other"), [("attention", "experts"), ("experts", "attention")])
def test_the_two_pools_never_import_each_other(pool: str, other: str) -> None:
    """Neither directly nor through what they import: read from the files, not from the table."""
    files = {
        ".".join((PACKAGE, *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in modules()
    }
    start = [name for name in files if name.startswith(f"{PACKAGE}.{pool}.")]
    reached, ahead = set[str](), start
    assert start
    while ahead:
        name = ahead.pop()
        reached.add(name)
        for _, target in imports(files[name]):
            for candidate in (target, target.rpartition(".")[0]):
                if candidate in files and candidate not in reached:
                    ahead.append(candidate)
    assert not [name for name in reached if name.startswith(f"{PACKAGE}.{other}")]


def test_pure_packages_name_no_framework() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)}:{line} imports {name}"
        for path in modules()
        for line, name in imports(path)
        if unit_of_file(path) in PURE and name.split(".")[0] in HEAVY
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("unit", PURE)
def test_pure_packages_load_no_framework(unit: str) -> None:
    names = [
        ".".join((PACKAGE, *path.relative_to(SOURCE).with_suffix("").parts))
        for path in modules()
        if unit_of_file(path) == unit
    ]
    if not names:
        pytest.skip(f"{unit} does not exist yet")
    names = [name.removesuffix(".__init__") for name in names]
    code = (
        f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
        f"loaded = [name for name in {HEAVY} if name in sys.modules]\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def dangers(path: Path) -> Iterator[str]:
    """Ways of running somebody else's code: unpickling and remote model code."""
    for line, name in imports(path):
        if name.split(".")[0] in ("pickle", "cPickle", "cloudpickle", "dill", "shelve"):
            yield f"{path.name}:{line} imports {name}"
        if name == "torch.load":
            yield f"{path.name}:{line} imports torch.load"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
            yield f"{path.name}:{node.lineno} uses torch.load"
        if isinstance(node, ast.keyword) and (node.arg, ast.unparse(node.value)) in (
            ("trust_remote_code", "True"),
            ("allow_pickle", "True"),
        ):
            yield f"{path.name}:{node.value.lineno} sets {node.arg}=True"


def test_nothing_is_unpickled_and_no_remote_code_is_run() -> None:
    wrong = [danger for path in modules() for danger in dangers(path)]
    assert not wrong, wrong


def pool_size_settings(path: Path) -> Iterator[int]:
    """Lines that read the size of a pool from settings instead of a membership."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value).rpartition(".")[2]
            if node.attr in ("attention_instances", "expert_instances") or (
                node.attr == "shape" and owner.endswith(("config", "settings"))
            ):
                yield node.lineno


def test_pool_sizes_are_asked_of_a_membership_and_not_of_the_settings() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)}:{line}"
        for path in modules()
        if str(path.relative_to(SOURCE)) not in POOL_SIZE_READERS
        for line in pool_size_settings(path)
    ]
    assert not wrong, f"ask the plan's or the engine's membership: {wrong}"
    unused = [name for name in POOL_SIZE_READERS if not any(pool_size_settings(SOURCE / name))]
    assert not unused, f"these read no pool sizes any more: {unused}"


def public_types(path: Path) -> Iterator[str]:
    """Public names of classes and type aliases (CamelCase) that a module defines at its top."""
    for node in ast.parse(path.read_text()).body:
        names: list[ast.expr] = []
        if isinstance(node, ast.ClassDef):
            yield from () if node.name.startswith("_") else (node.name,)
        elif isinstance(node, ast.Assign):
            names = node.targets
        elif isinstance(node, ast.AnnAssign):
            names = [node.target]
        for name in names:
            if isinstance(name, ast.Name) and name.id[0].isupper() and not name.id.isupper():
                yield name.id


def test_no_public_type_name_is_defined_twice() -> None:
    places: dict[str, list[str]] = {}
    for path in modules():
        for name in public_types(path):
            places.setdefault(name, []).append(str(path.relative_to(SOURCE)))
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert not twice, f"one word for one thing: {twice}"


def test_files_stay_small() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in modules()}
    long = {str(path.relative_to(SOURCE)): n for path, n in lines.items() if n > MAX_LINES}
    assert not long, f"split what has more than {MAX_LINES} lines: {long}"
    assert statistics.median(n for n in lines.values() if n) < MAX_MEDIAN_LINES


@pytest.mark.parametrize("package", MAX_PART_IMPORTS)
def test_parts_of_a_package_keep_to_themselves(package: str) -> None:
    pairs = set()
    for path in (SOURCE / package).rglob("*.py"):
        part = path.relative_to(SOURCE / package).with_suffix("").parts[0]
        for _, name in imports(path):
            parts = name.split(".")
            if parts[:2] == [PACKAGE, package] and len(parts) > 3 and parts[2] != part:
                pairs.add((part, parts[2]))
    assert len(pairs) <= MAX_PART_IMPORTS[package], sorted(pairs)
