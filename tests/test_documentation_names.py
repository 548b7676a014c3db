"""The pages and docstrings name only modules and files that exist.

Commands in the pages are executed elsewhere; here nothing is imported and nothing runs.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "janus_moe"

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/**/*.md", "paper/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)
PROGRAMS = sorted(
    path
    for folder in (PACKAGE, ROOT / "benchmarks", ROOT / "paper", ROOT / "tests")
    for path in folder.rglob("*.py")
)

MODULE = re.compile(r"(?<![\w./-])(?:janus_moe|benchmarks|paper)(?:\.[A-Za-z_]\w*)+")
FILE = re.compile(r"(?<![\w./*<{-])(?:[\w-]+/)*[\w-]+\.(?:py|md)(?![\w*])")
FOLDER = re.compile(r"`((?:[\w-]+/)+)`")


def texts(path: Path) -> str:
    """What a page says, or the docstrings of a program."""
    if path.suffix == ".md":
        return path.read_text()
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds))
    return "\n".join(filter(None, map(ast.get_docstring, nodes)))


@functools.cache
def top_names(module: Path) -> frozenset[str]:
    """What a module defines, imports or exports at its top."""
    names = set[str]()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names.update(one.id for one in ast.walk(node) if isinstance(one, ast.Name))
            if "__all__" in names:
                names.update(str(c.value) for c in ast.walk(node) if isinstance(c, ast.Constant))
    return frozenset(names)


def is_module(name: str) -> bool:
    """Whether a dotted name is a module, a folder of modules or a name at the top of a module."""
    parts = name.split(".")
    place = SOURCE if parts[0] == "janus_moe" else ROOT
    for number, part in enumerate(parts):
        if (place / part).is_dir():
            place /= part
            continue
        module = place / f"{part}.py"
        if module.is_file():
            rest = parts[number + 1 :]
        else:
            module, rest = place / "__init__.py", parts[number:]
        return module.is_file() and (not rest or rest[0] in top_names(module))
    return True


def is_file(name: str, page: Path) -> bool:
    """Whether a path exists: from the root, the package, the page, or as the end of a path."""
    if any((base / name).exists() for base in (ROOT, PACKAGE, page.parent)):
        return True
    if name.endswith("/"):
        return any(f"/{name}" in str(path) for path in PROGRAMS)
    return any(str(path).endswith(f"/{name}") for path in PROGRAMS + PAGES)


def wrong_names(path: Path) -> Iterator[str]:
    text = texts(path)
    yield from (name for name in MODULE.findall(text) if not is_module(name))
    yield from (name for name in FILE.findall(text) if not is_file(name, path))
    if path.suffix == ".md":
        yield from (name for name in FOLDER.findall(text) if not is_file(name, path))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_what_exists(page: Path) -> None:
    assert not sorted(set(wrong_names(page)))


def test_docstrings_name_what_exists() -> None:
    wrong = {str(path.relative_to(ROOT)): sorted(set(wrong_names(path))) for path in PROGRAMS}
    assert not {path: names for path, names in wrong.items() if names}


def test_names_that_do_not_exist_are_found() -> None:
    assert is_module("janus_moe.policy.placement") and is_module("benchmarks.support.hosts")
    assert is_module("janus_moe.cluster.deployment_plan.plan_deployment")
    assert not is_module("janus_moe.nothing") and not is_module("benchmarks.nothing")
    assert not is_module("janus_moe.cluster.deployment_plan.nothing")
    assert FILE.findall("see `engine/nothing.py` and docs/index.md.") == [
        "engine/nothing.py",
        "docs/index.md",
    ]
    assert is_file("engine/engine.py", ROOT) and not is_file("engine/nothing.py", ROOT)


LIST_ENTRY = re.compile(r"^ {0,4}([a-z]\w*)(?:\.py|/)? {2,}\S", re.MULTILINE)


def listed_packages() -> Iterator[Path]:
    """Packages whose docstring has a list of their modules."""
    for path in sorted(PACKAGE.rglob("__init__.py")):
        if len(LIST_ENTRY.findall(texts(path))) >= 3:
            yield path


@pytest.mark.parametrize(
    "path", list(listed_packages()), ids=lambda path: str(path.parent.relative_to(PACKAGE))
)
def test_a_package_that_lists_its_modules_lists_all_of_them(path: Path) -> None:
    text, folder = texts(path), path.parent
    modules = {one.stem for one in folder.glob("*.py")} - {"__init__", "__main__"}
    packages = {one.parent.name for one in folder.glob("*/__init__.py")}
    unlisted = {name for name in modules | packages if not re.search(rf"\b{name}\b", text)}
    assert not sorted(unlisted), "say in a line what each is for"
    # What is listed may lie deeper, below the line of its folder.
    names = {one.stem for one in folder.rglob("*.py")} | {one.name for one in folder.rglob("*")}
    assert not sorted(set(LIST_ENTRY.findall(text)) - names)
