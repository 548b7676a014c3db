"""Claim: what README and docs tell a reader to type works as it stands there.

Blocks of `bash` and `python` are run in their order, page by page, in one folder, with a service of
the bundled model behind them. A block after `<!-- not run: reason -->` is left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.e2e.server_process import ServerProcess, serving

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(<!-- not run: [^>]+ -->\n)?```(bash|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
DOCUMENTED_ADDRESS = "http://127.0.0.1:8000"
LIMIT_S = 100.0


class Block(NamedTuple):
    """A fenced block of a page: what it is written in, and its text."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [Block(language, text) for marker, language, text in found if not marker]


@pytest.fixture(scope="module")
def service() -> Iterator[ServerProcess]:
    with serving("bundled", "--expert-instances", "2") as server:
        yield server.wait_until_ready()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A search path on which `janus` is this checkout's."""
    folder = tmp_path_factory.mktemp("bin")
    command = folder / "janus"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m janus_moe.cli "$@"\n')
    command.chmod(0o755)
    return f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda p: p.stem)
def test_what_is_written_works(
    page: Path, service: ServerProcess, path: str, tmp_path: Path
) -> None:
    for block in blocks(page):
        text = block.text.replace(DOCUMENTED_ADDRESS, service.url)
        program = ["bash", "-euc"] if block.language == "bash" else [sys.executable, "-c"]
        found = subprocess.run(
            [*program, text],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert found.returncode == 0, f"{text}\n{found.stdout}\n{found.stderr}"


def test_blocks_are_found_and_a_marker_leaves_out_only_the_next_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: long -->\n```bash\none\n```\n\n```bash\ntwo\n```\n")
    assert blocks(page) == [Block("bash", "two\n")]
    assert len(blocks(ROOT / "README.md")) >= 5


def test_links_between_pages_lead_somewhere() -> None:
    wrong = [
        f"{page.name}: {target}"
        for page in [*PAGES, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"]
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not wrong
