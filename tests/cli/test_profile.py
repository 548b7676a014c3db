"""Claim: what `janus profile` wrote is read by `janus plan` and `janus simulate trace`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.planner.latency.test_profile import profile

from janus_moe.cli import main, serve
from janus_moe.cli.flags import parse
from janus_moe.planner.latency.profile import write_profile
from janus_moe.planner.search.measured import machine_oracle

LENGTHS = ["--isl", "32", "--osl", "64"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_profile(tmp_path / "profile.json", profile())
    return tmp_path / "profile.json"


def test_a_plan_takes_its_times_from_the_tables_of_each_shape(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = ["plan", "--profile", str(path), *LENGTHS, "--target-concurrency", "4"]
    assert main([*command, "--prefill", "excluded", "--detail", "--save-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "measured on this kind of machine" in " ".join(shown.split())
    reports = [line for line in shown.splitlines() if not line.startswith("wrote ")]
    assert max(map(len, reports)) <= 80
    figures = json.loads((tmp_path / "plan.json").read_text())["pools"]
    assert {one["shape"] for one in figures} == {"1A1E", "1A2E", "2A1E", "2A2E"}
    for one in figures:
        oracle = machine_oracle(profile(), one["num_attention"], one["num_expert"])
        load = oracle.pools_load(
            4, 64, one["num_attention"], one["num_expert"], one["activated"], plan="1pc"
        )
        assert one["tpot_s"] == pytest.approx(float(oracle.step_s(load)), rel=0.02)
    engine, *_ = parse("janus serve", "", serve.COMMAND, ["--config", str(tmp_path / "serve.yaml")])
    best = figures[0]["num_attention"], figures[0]["num_expert"]
    assert (engine.shape.attention, engine.shape.expert) == best
    assert engine.model == "bundled" and "verdict" not in shown


def test_too_much_for_the_machine_is_said_with_the_nearest_plan(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", "--profile", str(path), *LENGTHS, "--target-request-rate", "1000"]
    assert main(command) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "no shape meets the demand with what was measured" in text and "nearest" in text


def test_a_simulation_takes_its_times_from_the_tables_of_each_shape(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["simulate", "trace", "synthetic:poisson", "--rate", "1", "--duration", "60"]
    command += ["--profile", str(path), "--input-len", "32", "--output-len", "64"]
    command += ["--json", str(tmp_path / "report.json")]
    assert main([*command, "--policy", "static:1A1E,static:1A2E"]) == 0
    one, two = json.loads((tmp_path / "report.json").read_text())
    assert one["completed"] == two["completed"] > 0
    assert two["median_tpot_ms"] < one["median_tpot_ms"]  # each has fewer experts to read
    capsys.readouterr()
    assert main([*command, "--policy", "janus"]) == 1
    assert "static:1A2E" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["plan"], ["simulate", "trace", "synthetic:poisson"]])
def test_a_model_or_a_profile_is_asked_for(
    command: list[str], path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 1
    assert main([*command, "--model", "deepseek-v2", "--profile", str(path)]) == 1
    assert capsys.readouterr().err.count("--profile FILE") == 2


def test_a_file_that_is_no_profile_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.json").write_text("{}")
    assert main(["plan", "--profile", str(tmp_path / "other.json")]) == 1
    error = capsys.readouterr().err
    assert "other.json" in error and error.count("\n") == 1
