"""Simulations side by side: a table for the terminal, and files with everything.

Equal simulations give equal bytes; how long a simulation took is shown and never written.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from janus_moe.errors import ConfigError
from janus_moe.planner.simulation.report import SimulationReport

ROWS = (
    ("requests", "completed", "{:,.0f}"),
    ("output tokens/s", "output_throughput", "{:,.1f}"),
    ("TTFT ms, median", "median_ttft_ms", "{:,.1f}"),
    ("TTFT ms, p99", "p99_ttft_ms", "{:,.1f}"),
    ("TPOT ms, median", "median_tpot_ms", "{:.2f}"),
    ("TPOT ms, p99", "p99_tpot_ms", "{:.2f}"),
    ("end to end ms, median", "median_e2el_ms", "{:,.0f}"),
    ("met the TPOT objective", "slo_tpot_attainment", "{:.2%}"),
    ("met the TTFT objective", "slo_ttft_attainment", "{:.2%}"),
    ("met the objectives", "slo_attainment", "{:.2%}"),
    ("GPU hours", "gpu_hours", "{:,.2f}"),
    ("most GPUs", "max_gpus", "{:.0f}"),
    ("tokens/s per GPU", "output_tokens_per_gpu_s", "{:,.1f}"),
    ("changes of the deployment", "num_decisions", "{:.0f}"),
    ("demands beyond its GPUs", "num_short", "{:.0f}"),
    ("preemptions", "num_preemptions", "{:,.0f}"),
    ("rejected", "rejected", "{:,.0f}"),
)
PANELS = (
    ("request_rate", "requests/s"),
    ("gpus", "GPUs held"),
    ("mean_step_ms", "mean step, ms"),
    ("attained", "share that met\nthe objectives"),
)
LABEL_WIDTH, COLUMN_WIDTH = 29, 17
"""Columns of a terminal that row titles, and each policy, take up at most."""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>janus simulate trace</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse; margin: 1em 0 }}
td, th {{ padding: .2em .9em; border-bottom: 1px solid #ddd; text-align: right }}
td:first-child, th:first-child {{ text-align: left }}
svg {{ max-width: 100%; height: auto }} details {{ margin: .6em 0 }}
</style></head><body>
<h1>Deployments side by side</h1>
<p>{heading}</p>
{table}
{plot}
<h2>Configurations</h2>
{configurations}
<h2>Decisions</h2>
{decisions}
</body></html>
"""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Simulations of several policies.

    heading: what was simulated
    reports: one for each policy
    """

    heading: str
    reports: tuple[SimulationReport, ...]

    def show(self, console: Console, seconds: Sequence[float]) -> None:
        """Prints tables, so many policies beside each other as the terminal has room for.

        seconds: that each simulation took
        """
        console.print(self.heading)
        shown = max(1, (console.width - LABEL_WIDTH) // COLUMN_WIDTH)
        for first in range(0, len(self.reports), shown):
            console.print(self._table_of(seconds, slice(first, first + shown)))
        for report in self.reports:
            console.print(f"{report.policy}: {'; '.join(report.configuration)}", style="dim")

    def _table_of(self, seconds: Sequence[float], columns: slice) -> Table:
        """Returns a table of some of the policies, so many as a terminal has room for."""
        table = Table()
        table.add_column("", no_wrap=True)
        for report in self.reports[columns]:
            table.add_column(report.policy, justify="right", overflow="fold")
        for title, cells in self._rows():
            table.add_row(title, *cells[columns])
        table.add_row("simulated in", *(f"{one:.1f} s" for one in seconds[columns]), style="dim")
        return table

    def write(self, folder: Path | None, json: Path | None, plot: Path | None) -> list[Path]:
        """Writes what is asked for; returns the files."""
        files: dict[Path, str] = {}
        if folder is not None:
            files[folder / "report.html"] = self.page()
            files[folder / "report.json"] = self.to_json()
        if json is not None:
            files[json] = self.to_json()
        written = list(files)
        path = folder or Path()
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            for path, text in files.items():
                path.write_text(text, encoding="utf-8")
            if plot is not None:
                path = plot
                self.figure().savefig(plot, dpi=150)
                written.append(plot)
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot write {path}: {error}") from None
        return written

    def to_json(self) -> str:
        return f"[{','.join(report.to_json() for report in self.reports)}]\n"

    def page(self) -> str:
        """Returns one HTML file that needs no other; without plots where matplotlib is missing."""
        figure = self.figure()
        missing = "<p>Plots need matplotlib: pip install 'janus-moe[bench]'.</p>"
        return PAGE.format(
            heading=escape(self.heading),
            table=_table(("", *(r.policy for r in self.reports)), self._rows()),
            plot=missing if figure is None else _svg(figure),
            configurations="\n".join(
                f"<details open><summary><b>{escape(report.policy)}</b></summary>"
                + "".join(f"{escape(line)}<br>" for line in report.configuration)
                + "</details>"
                for report in self.reports
            ),
            decisions="\n".join(_decisions(report) for report in self.reports),
        )

    def figure(self) -> Any:
        """Returns load, GPUs, steps and attainment over time; None without matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return None
        figure: Any = Figure(figsize=(9, 10), layout="constrained")
        axes: Any = figure.subplots(len(PANELS), 1, sharex=True)
        for axis, (key, title) in zip(axes, PANELS, strict=True):
            shown = self.reports[:1] if key == "request_rate" else self.reports
            for report in shown:
                label = f"{report.policy}: {report.figures['gpu_hours']:.1f} GPU hours"
                colour = "black" if key == "request_rate" else None
                axis.step(*_line(report, key), where="post", label=label, color=colour)
            axis.set_ylabel(title)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
        axes[1].legend(fontsize="small")
        axes[-1].set_ylim(0, 1.03)
        axes[-1].set_xlabel("hours")
        return figure

    def _rows(self) -> Iterator[tuple[str, list[str]]]:
        """Yields titles and cells, without objectives that no policy was given."""
        for title, key, form in ROWS:
            values = [report.figures[key] for report in self.reports]
            if key != "slo_ttft_attainment" or values[0] is not None:
                yield title, ["-" if value is None else form.format(value) for value in values]
        yield "last deployment", [report.decisions[-1].deployment for report in self.reports]


def _line(report: SimulationReport, key: str) -> tuple[list[float], list[float]]:
    """(hours, values); the last interval to its end."""
    intervals = report.intervals
    values = [getattr(one, key) for one in intervals]
    points = [float("nan") if value is None else float(value) for value in values]
    hours = [one.start_s / 3600 for one in intervals]
    end = float(report.figures["duration"] or 0.0) / 3600
    return [*hours, end], [*points, points[-1]]


def _svg(figure: Any) -> str:
    """The same bytes for the same figure."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "janus", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    found = text.getvalue()
    return found[found.index("<svg") :]


def _decisions(report: SimulationReport) -> str:
    rows = [
        (
            f"{one.decided_s:,.0f}",
            [
                f"{one.serving_s:,.0f}",
                f"{one.demand.requests_per_s:.2f}",
                one.deployment,
                str(one.num_gpus),
                one.how,
                "" if one.enough else "not enough",
            ],
        )
        for one in report.decisions
    ]
    head = ("decided, s", "serves, s", "requests/s seen", "deployment", "GPUs", "how", "")
    name, count = escape(report.policy), len(rows)
    return f"<details><summary><b>{name}</b>: {count}</summary>{_table(head, rows)}</details>"


def _table(head: Sequence[str], rows: Iterator[Any] | Sequence[Any]) -> str:
    def row(tag: str, cells: Sequence[str]) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "\n".join(row("td", (first, *others)) for first, others in rows)
    return f"<table>\n{row('th', head)}\n{body}\n</table>"
