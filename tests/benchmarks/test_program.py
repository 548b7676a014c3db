"""Claims about the command line that all benchmarks share."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.support.hosts import HostsUnavailable
from benchmarks.support.program import Result, flag, main


def run(monkeypatch: pytest.MonkeyPatch, measure: Any, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["a_benchmark", *arguments])
    main("A claim.\n\nMore of it.", measure, flag("--rounds", type=int, default=3))


def found(options: argparse.Namespace) -> Result:
    rows = [{"batch": 1, "ratio": 1.25, "all": [1, 2]}, {"batch": 64, "ratio": 0.5, "all": []}]
    return {"rows": rows, "rounds": options.rounds, "curve": [1.0, 2.0]}


def test_scalars_are_printed_and_everything_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "new" / "result.json"
    run(monkeypatch, found, "--rounds", "7", "--json", str(path))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["batch", "ratio"],
        ["1", "1.25"],
        ["64", "0.5"],
        ["rounds:", "7"],
    ]
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["flags"] == {"rounds": 7}
    assert content["rows"][0]["all"] == [1, 2] and content["curve"] == [1.0, 2.0]
    assert content["machine"]["cores"] >= 1


def test_a_machine_without_hosts_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: argparse.Namespace) -> Result:
        raise HostsUnavailable("making network namespaces needs root")

    with pytest.raises(SystemExit, match="a_benchmark: making network namespaces needs root"):
        run(monkeypatch, refuse)
