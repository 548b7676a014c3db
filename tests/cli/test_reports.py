"""Claim: every report can be read in a terminal of 80 columns, and none is lost for want of a
package that is not installed."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from janus_moe.cli import main, profile_exchange, simulate_trace
from janus_moe.planner.latency.link_fit import COEFFICIENTS
from janus_moe.planner.latency.link_profile import LinkProfile
from janus_moe.policy.routing_trace import TraceRecorder
from janus_moe.policy.synthetic import SyntheticRouter

PLAN = ["plan", "deepseek-v2", "--system", "h100_sxm", "--total-gpus", "32"]
TRACE = ["simulate", "trace", "synthetic:poisson", "--rate", "1", "--duration", "60"]
TRACE += ["--model", "deepseek-v2"]


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints, in lines of 80 columns."""
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    return text


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A file of recorded routing."""
    router, recorder = SyntheticRouter("zipf", 32, 4), TraceRecorder(2, 32)
    rng = np.random.default_rng(1)
    for layer in (0, 1, 0, 1):
        recorder.record(layer, router.batch(64, rng))
    recorder.trace().save(tmp_path / "zipf.jrt")
    return tmp_path / "zipf.jrt"


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--detail"],
        ["--gpu-price", "H100=2.5", "--detail"],
        ["--target-request-rate", "5000"],
        ["--expert-system", "h20", "--gpu-price", "H100=2.5,H20=1.2", "--objective", "price"],
    ],
)
def test_plans_fit_80_columns(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, *PLAN, *flags)
    assert "…" not in text  # no cell is cut off


def test_simulations_of_many_policies_fit_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    policies = ["monolithic", "static:1A6E", "static:2A6E", "static:2A7E", "static:12A16E"]
    text = shown(capsys, *TRACE, "--policy", ",".join(policies))
    assert all(name in text for name in policies) and "…" not in text


def test_replays_of_routing_fit_80_columns(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [str(2**exponent) for exponent in range(10)]
    text = shown(
        capsys, "simulate", "routing", str(recorded), "--batches", "2", "--batch-sizes", *sizes
    )
    assert all(f"B={size}" in text for size in sizes) and "…" not in text


def test_profiles_of_links_fit_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    links = dict.fromkeys(COEFFICIENTS, 1e-9 * math.pi)
    found = LinkProfile(
        machine={},
        attention_nodes=(0,),
        expert_nodes=(1,),
        hidden_size=8,
        links=links,
        median_error=0.1,
        p90_error=0.2,
    )
    Console().print(profile_exchange._table(found))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize("command", [TRACE, ["simulate", "routing"]])
def test_a_missing_package_is_noticed_before_the_work(
    command: list[str],
    recorded: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find(name)
    )
    monkeypatch.setattr(simulate_trace, "simulate", lambda *a: pytest.fail("it was simulated"))
    arguments = [*command, *([str(recorded)] if command[-1] == "routing" else [])]
    assert main([*arguments, "--plot", "picture.png"]) == 1
    error = capsys.readouterr().err
    assert "pip install 'janus-moe[bench]'" in error and error.count("\n") == 1


@pytest.mark.parametrize("command", [PLAN, TRACE])
def test_plots_that_are_left_out_are_said_with_what_to_install(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find(name)
    )
    assert main([*command, "--save-dir", str(tmp_path)]) == 0
    assert "no plots: pip install 'janus-moe[bench]'\n" in capsys.readouterr().out
