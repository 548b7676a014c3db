"""The report of all figures in Markdown and HTML, from what `compare` says; it computes nothing."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from paper.figure import Comparison, Data

HEADER = ("What", "Paper", "Ours", "Why they differ")


class Entry(NamedTuple):
    """A figure's module has its data beside it.

    plot, json: links, relative to the report.
    """

    module: ModuleType
    data: Data
    plot: str
    json: str

    @property
    def title(self) -> str:
        number = self.module.NUMBER
        name = f"Figure {number}" if number.isdigit() else number.capitalize().replace("-", " ")
        return f"{name}. {self.module.TITLE}"

    @property
    def comparisons(self) -> list[Comparison]:
        found: list[Comparison] = self.module.compare(self.data)
        return found


def markdown(introduction: str, entries: Sequence[Entry]) -> str:
    parts = [introduction.strip()]
    for entry in entries:
        rows = [HEADER, ("---",) * len(HEADER), *entry.comparisons]
        table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in r)} |" for r in rows)
        parts += [
            f"## {entry.title}",
            f"{entry.module.BASIS} [Data]({entry.json}).",
            f"![{entry.title}]({entry.plot})",
            table,
        ]
    return "\n\n".join(parts) + "\n"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
img { max-width: 100%; } table { border-collapse: collapse; margin: 1em 0 2.5em; }
td, th { border: 1px solid #ccc; padding: 4px 8px; text-align: left; vertical-align: top; }
th { background: #f3f3f3; } pre { white-space: pre-wrap; font: inherit; }
"""


def page(introduction: str, entries: Sequence[Entry]) -> str:
    """One HTML file without scripts; it opens from disk beside its pictures."""
    title, _, rest = introduction.strip().partition("\n")
    title = html.escape(title.lstrip("# "))
    body = [f"<h1>{title}</h1>", _paragraphs(rest)]
    for entry in entries:
        rows = [_row("th", HEADER), *(_row("td", row) for row in entry.comparisons)]
        body += [
            f'<h2 id="{html.escape(_anchor(entry))}">{html.escape(entry.title)}</h2>',
            f'<p>{_inline(entry.module.BASIS)} <a href="{html.escape(entry.json)}">Data</a>.</p>',
            f'<img src="{html.escape(entry.plot)}" alt="{html.escape(entry.title)}">',
            f"<table>{''.join(rows)}</table>",
        ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _anchor(entry: Entry) -> str:
    return f"fig{entry.module.NUMBER}"


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_inline(cell)}</{tag}>" for cell in cells) + "</tr>"


def _inline(text: str) -> str:
    """Escapes, and keeps code between backquotes."""
    pieces = html.escape(text).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(pieces))


def _paragraphs(text: str) -> str:
    blocks = [block for block in text.strip().split("\n\n") if block]
    return "\n".join(_block(block) for block in blocks)


def _block(block: str) -> str:
    lines = block.splitlines()
    if lines[0].startswith("|"):
        cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
        rows = [_row("th", cells[0]), *(_row("td", row) for row in cells[2:])]
        return f"<table>{''.join(rows)}</table>"
    if lines[0].startswith("#"):
        return f"<h2>{_inline(lines[0].lstrip('# '))}</h2>"
    if lines[0].startswith("- "):
        items = " ".join(line.strip() for line in lines)[2:].split(" - ")
        return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>"
    return f"<p>{_inline(' '.join(lines))}</p>"


def facts_table(facts: Mapping[str, Any]) -> str:
    """A Markdown table of names and values, for the introduction."""
    rows = [f"| {name} | {value} |" for name, value in facts.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])
