"""Writes data, plots and the report of the paper's figures.

python -m benchmarks.figures [--only 3 9] [--out DIR] [--seed N]

Without --out the committed files are written: benchmarks/results/figures, docs/figures/paper and
docs/evaluation.md. With it everything goes into one folder, with the report as a page too. --only
makes no report: that is of all figures.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.figures.catalog import FIGURES
from benchmarks.figures.drawing import draw
from benchmarks.figures.encoding import content, encoded
from benchmarks.figures.introduction import introduction
from benchmarks.figures.report import Entry, markdown, page


class Places(NamedTuple):
    """Where what goes. html: None for no page."""

    json: Path
    plots: Path
    report: Path
    html: Path | None


def places(out: Path | None) -> Places:
    if out:
        return Places(out, out, out / "report.md", out / "report.html")
    docs = Path("docs")
    return Places(
        Path("benchmarks/results/figures"), docs / "figures/paper", docs / "evaluation.md", None
    )


def make(number: str, where: Places, seed: int) -> Entry:
    began = time.perf_counter()
    made = content(number, seed)
    path = where.json / f"fig{number}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(encoded(made), encoding="utf-8")
    plot = where.plots / f"fig{number}.png"
    draw(FIGURES[number], made["data"], plot)
    print(f"figure {number}: {time.perf_counter() - began:.1f} s", flush=True)
    beside = where.report.parent
    links = (os.path.relpath(one, beside) for one in (plot, path))
    return Entry(FIGURES[number], made["data"], *links)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(FIGURES), metavar="FIGURE")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    where = places(options.out)
    entries = [make(number, where, options.seed) for number in options.only or FIGURES]
    for entry in entries:
        for row in entry.comparisons:
            print(f"{entry.module.NUMBER}: {row.what}: paper {row.paper}; ours {row.ours}")
    if options.only:
        return
    text = introduction({entry.module.NUMBER: entry.data for entry in entries})
    where.report.write_text(markdown(text, entries), encoding="utf-8")
    if where.html:
        where.html.write_text(page(text, entries), encoding="utf-8")


if __name__ == "__main__":
    main()
