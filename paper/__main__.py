"""Writes data, plots and the report of the paper's figures.

python -m paper [--only 3 9] [--out DIR] [--seed N]

Without --out the committed files are written: paper/results, docs/figures/paper and
docs/evaluation.md. With it everything goes into one folder, with the report as a page too. With
--only the report takes the other figures from their files there; without these there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from paper.catalog import FIGURES
from paper.drawing import draw
from paper.encoding import content, encoded
from paper.figure import Data
from paper.introduction import introduction
from paper.report import Entry, markdown, page


class Places(NamedTuple):
    """Folders and files that a run writes.

    json, plots: folders of the figures' data and pictures.
    report: file in Markdown.
    html: the report as a page; None means that there is none.
    """

    json: Path
    plots: Path
    report: Path
    html: Path | None


def places(out: Path | None) -> Places:
    if out:
        return Places(out, out, out / "report.md", out / "report.html")
    docs = Path("docs")
    return Places(Path("paper/results"), docs / "figures/paper", docs / "evaluation.md", None)


def json_of(number: str, where: Places) -> Path:
    return where.json / f"fig{number}.json"


def make(number: str, where: Places, seed: int) -> Entry:
    began = time.perf_counter()
    made = content(number, seed)
    path = json_of(number, where)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(encoded(made), encoding="utf-8")
    draw(FIGURES[number], made["data"], plot_of(number, where))
    print(f"figure {number}: {time.perf_counter() - began:.1f} s", flush=True)
    return entry_of(number, made["data"], where)


def known(number: str, where: Places) -> Entry:
    """From its file."""
    content = json.loads(json_of(number, where).read_text(encoding="utf-8"))
    return entry_of(number, content["data"], where)


def plot_of(number: str, where: Places) -> Path:
    return where.plots / f"fig{number}.png"


def entry_of(number: str, data: Data, where: Places) -> Entry:
    paths = plot_of(number, where), json_of(number, where)
    return Entry(FIGURES[number], data, *(os.path.relpath(p, where.report.parent) for p in paths))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(FIGURES), metavar="FIGURE")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    where = places(options.out)
    wanted = options.only or list(FIGURES)
    made = {number: make(number, where, options.seed) for number in FIGURES if number in wanted}
    for entry in made.values():
        for row in entry.comparisons:
            print(f"{entry.module.NUMBER}: {row.what}: paper {row.paper}; ours {row.ours}")
    others = [number for number in FIGURES if number not in made]
    if not all(json_of(number, where).exists() for number in others):
        return
    entries = [made.get(number) or known(number, where) for number in FIGURES]
    text = introduction({entry.module.NUMBER: entry.data for entry in entries})
    where.report.write_text(markdown(text, entries), encoding="utf-8")
    if where.html:
        where.html.write_text(page(text, entries), encoding="utf-8")


if __name__ == "__main__":
    main()
