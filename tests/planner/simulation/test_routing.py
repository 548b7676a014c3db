"""Claims about replaying routing through policies and placements."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from janus_moe.cli import main
from janus_moe.errors import ConfigError
from janus_moe.planner.simulation.routing_replay import ExpertPoolSize, simulate_routing
from janus_moe.policy.routing_trace import RoutingTrace, TraceRecorder

EXPERTS, LAYERS, TOP_K = 16, 2, 3


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    """Skewed routing: low ids are chosen more often."""
    rng = np.random.default_rng(1)
    recorder = TraceRecorder(LAYERS, EXPERTS)
    weights = 1.0 / np.arange(1, EXPERTS + 1)
    for _ in range(20):
        for layer in range(LAYERS):
            keys = rng.random((24, EXPERTS)) ** (1 / weights)
            recorder.record(layer, np.argsort(-keys, axis=1)[:, :TOP_K].astype(np.int32))
    return recorder.trace()


def test_exact_is_never_above_greedy_and_never_below_an_even_split(trace: RoutingTrace) -> None:
    choices = [("exact", "janus"), ("aebs", "janus"), ("token-split", "eplb")]
    cells = simulate_routing(trace, [ExpertPoolSize(4, 4)], [1, 8, 32], choices, num_batches=16)  # type: ignore[arg-type]
    found = {(c.policy, c.batch_size): c for c in cells}
    for size in (1, 8, 32):
        exact = found["exact", size]
        assert exact.even <= exact.max_activated <= found["aebs", size].max_activated
    assert found["exact", 8].max_activated < found["token-split", 8].max_activated


def test_same_seed_same_cells(trace: RoutingTrace) -> None:
    def run() -> object:
        return simulate_routing(
            trace, [ExpertPoolSize(3, 0)], [5], [("random", "coactivation")], seed=4
        )

    assert run() == run()


def test_pools_that_cannot_be_filled_are_refused(trace: RoutingTrace) -> None:
    with pytest.raises(ConfigError, match="use at most 16"):
        simulate_routing(trace, [ExpertPoolSize(17, 0)], [1], [("exact", "janus")])


def test_command_prints_a_table_and_writes_figures(
    trace: RoutingTrace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, figures = tmp_path / "routing.jrt", tmp_path / "cells.json"
    trace.save(path)
    flags = ["--expert-instances", "2", "4", "--batch-sizes", "4", "--batches", "4"]
    assert main(["simulate", "routing", str(path), *flags, "--json", str(figures)]) == 0
    output = capsys.readouterr().out
    assert "token-split" in output
    assert "coactivation" in output
    assert len(json.loads(figures.read_text())) == 2 * 5 * 3


def test_command_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "not-a-trace"
    path.write_bytes(b"something else")
    assert main(["simulate", "routing", str(path)]) == 1
    assert "not-a-trace" in capsys.readouterr().err
