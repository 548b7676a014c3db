"""Claims about committed results and pictures: none is orphaned, each can be made again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from paper.catalog import FIGURES
from paper.measured.__main__ import PICTURES

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
PROGRAMS = sorted(
    path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__"
)


def test_every_result_is_cited_in_a_document() -> None:
    results = [*(ROOT / "benchmarks/results").glob("*"), *(ROOT / "paper/results").glob("*")]
    assert len(results) > 20
    assert [path.name for path in results if f"results/{path.name}" not in TEXT] == []


def test_every_result_that_a_document_cites_is_there() -> None:
    cited = set(re.findall(r"(?:benchmarks|paper)/results/[\w-]+\.json", TEXT))
    assert [path for path in sorted(cited) if not (ROOT / path).exists()] == []


def test_every_picture_that_a_document_shows_can_be_drawn() -> None:
    shown = {Path(link).relative_to("figures") for link in re.findall(r"\((figures/.+?)\)", TEXT)}
    drawn = {Path(f"{name}.png") for name in PICTURES}
    drawn |= {Path(f"paper/fig{number}.png") for number in FIGURES}
    assert shown == drawn
    assert [path for path in shown if not (ROOT / "docs/figures" / path).exists()] == []


def test_every_program_that_a_document_names_is_there() -> None:
    named = set(re.findall(r"(?:python -m |`)((?:benchmarks|paper)(?:\.\w+)+)", TEXT))
    places = [ROOT.joinpath(*name.split(".")) for name in sorted(named)]
    assert len(places) > 10
    assert [p for p in places if not p.with_suffix(".py").exists() and not p.is_dir()] == []


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_uses_the_one_command_line(name: str) -> None:
    text = (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
    assert "main(__doc__" in text or re.search(r"main\(\s+__doc__", text)
    assert "ArgumentParser" not in text
