"""Claims about scaling over time, reports and the command."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tests.planner.simulation.test_steps import linear_table, requests

from janus_moe.cli import main
from janus_moe.errors import ConfigError
from janus_moe.planner.simulation.chrome import events
from janus_moe.planner.simulation.deployment import SimDeployment
from janus_moe.planner.simulation.generators import Lengths, generate
from janus_moe.planner.simulation.pools import CompiledPool
from janus_moe.planner.simulation.reference import PolicyPool
from janus_moe.planner.simulation.report import LatencyObjective, make_report
from janus_moe.planner.simulation.scaling import (
    Loading,
    ObservedDemand,
    ScalingTarget,
    StaticPolicy,
)
from janus_moe.planner.simulation.simulate import Simulation, SimulationSettings, simulate
from janus_moe.planner.simulation.state import BatchLimits
from janus_moe.planner.simulation.step_table import PoolSize

LOADING = Loading(start_s=4.0, load_bytes_per_s=1e9, move_bytes_per_s=1e9)
SHORT = Lengths(mean=20)
TIMING = SimulationSettings(interval_s=100.0, check_s=20.0)


def deployment(attention: int, expert: int) -> SimDeployment:
    return SimDeployment(
        name=f"{attention}A{expert}E",
        size=PoolSize(attention, expert),
        table=linear_table(1.0 / (attention * expert)),
        limits=BatchLimits(16, 64, 256),
        kv_blocks=100,
        attention_bytes=6e9,
        expert_bytes=8e9,
    )


class Script:
    """What to have from which time on."""

    name, lines = "script", ()

    def __init__(self, steps: Mapping[float, tuple[int, int]]) -> None:
        self._steps = {at: deployment(*size) for at, size in steps.items()}
        self.asked: list[tuple[float, ObservedDemand]] = []

    def decide(
        self, now_s: float, demand: ObservedDemand, current: SimDeployment | None
    ) -> ScalingTarget:
        self.asked.append((now_s, demand))
        return ScalingTarget(self._steps[max(at for at in self._steps if at <= now_s)])


def gpus_at(simulation: Simulation, time: float) -> int:
    return sum(delta for at, delta in simulation.gpu_changes if at <= time)


def test_a_change_takes_gpus_at_once_and_serves_when_loaded() -> None:
    script = Script({0.0: (1, 2), 100.0: (2, 4), 200.0: (1, 2)})
    workload = requests(*((float(i), 4, 2) for i in range(400)))
    simulation = simulate(workload, script, TIMING, LOADING)
    grow, shrink = simulation.decisions[1:]
    # New instances start in 4 s and load 8 GB in 8 s, which is more than moving half of 8 GB.
    assert (grow.decided_s, grow.serving_s) == (100.0, 112.0)
    assert (shrink.decided_s, shrink.serving_s) == (200.0, 204.0)
    assert [gpus_at(simulation, t) for t in (0, 99, 100, 150, 203, 210)] == [3, 3, 6, 6, 6, 3]
    assert gpus_at(simulation, simulation.end_s) == 0
    # Steps take 1/2 s before and 1/8 s after.
    late = simulation.requests[120:190]
    assert (late["finish_s"] - late["first_s"]).max() == pytest.approx(1 / 8)
    assert (simulation.requests[5:90]["instance"] == 0).all()


def test_gpu_hours_are_the_area_under_what_is_held() -> None:
    script = Script({0.0: (1, 2), 100.0: (2, 4), 200.0: (1, 2)})
    workload = requests(*((float(i), 4, 2) for i in range(400)))
    simulation = simulate(workload, script, TIMING, LOADING)
    report = make_report(simulation, LatencyObjective(tpot_s=0.2))
    held = [gpus_at(simulation, t) for t in np.arange(0.0, simulation.end_s, 0.01)]
    assert report.figures["gpu_hours"] == pytest.approx(sum(held) * 0.01 / 3600, rel=1e-3)
    assert report.figures["max_gpus"] == 6
    assert [round(one.gpus, 1) for one in report.intervals] == [3.0, 6.0, 3.1, 3.0]


def test_load_brings_a_decision_forward() -> None:
    slow = [(float(10 * i), 4, 2) for i in range(12)]
    burst = [(120.0 + 0.5 * i, 4, 2) for i in range(120)]
    workload = requests(*slow, *burst)
    calm, alert = Script({0.0: (1, 2)}), Script({0.0: (1, 2)})
    simulate(workload, calm, SimulationSettings(interval_s=100.0, check_s=20.0), LOADING)
    simulate(
        workload, alert, SimulationSettings(interval_s=100.0, check_s=20.0, on_load=3.0), LOADING
    )
    assert [now for now, _ in calm.asked][:2] == [0.0, 100.0]
    assert [now for now, _ in alert.asked][:3] == [0.0, 100.0, 140.0]
    assert alert.asked[2][1].requests_per_s == pytest.approx(2.0)


@pytest.mark.parametrize("shape", [(1, 2), (3, 2)])
def test_scaling_is_the_same_through_the_policy_code(shape: tuple[int, int]) -> None:
    script = {0.0: (2, 2), 100.0: shape, 200.0: (2, 2)}
    workload = generate("gamma", 1.0, 300.0, 4)
    fast = simulate(workload, Script(script), TIMING, LOADING, CompiledPool)
    exact = simulate(workload, Script(script), TIMING, LOADING, PolicyPool)
    for field in ("instance", "first_s", "finish_s"):
        assert np.array_equal(fast.requests[field], exact.requests[field])
    assert fast.gpu_changes == exact.gpu_changes
    objective = LatencyObjective(tpot_s=0.3)
    assert make_report(fast, objective).figures == make_report(exact, objective).figures


def test_reports_are_equal_to_the_byte_and_add_up() -> None:
    def run(seed: int) -> str:
        workload = generate("poisson", 2.0, 350.0, seed, outputs=SHORT)
        simulation = simulate(workload, StaticPolicy(deployment(2, 2)), TIMING, LOADING)
        return make_report(simulation, LatencyObjective(tpot_s=0.26, ttft_s=1.0)).to_json()

    assert run(1) == run(1) != run(2)
    report = json.loads(run(1))
    assert report["completed"] == sum(one["arrived"] for one in report["intervals"])
    assert report["mean_ttft_ms"] <= report["mean_e2el_ms"]
    assert report["median_tpot_ms"] == pytest.approx(250.0)
    assert report["total_output_tokens"] == report["completed"] * 20
    assert 0.0 < report["slo_attainment"] <= 1.0


def test_chrome_traces_are_well_formed() -> None:
    timing = dataclasses.replace(TIMING, log_steps=200)
    workload = generate("poisson", 2.0, 100.0, 1, outputs=SHORT)
    simulation = simulate(workload, StaticPolicy(deployment(2, 2)), timing, LOADING)
    found = list(events(simulation))
    steps = [event for event in found if event["name"] == "step"]
    assert len(steps) == 200
    assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-2 for a, b in pairwise(steps))
    begun = sum(event["ph"] == "b" for event in found)
    assert begun == sum(event["ph"] == "e" for event in found) > 0
    json.dumps(found, allow_nan=False)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="decisions every 10"):
        SimulationSettings(interval_s=10, check_s=60)
    with pytest.raises(ConfigError, match="factor above 1"):
        SimulationSettings(on_load=0.5)
    with pytest.raises(ConfigError, match="rates above 0"):
        Loading(load_bytes_per_s=0)
    with pytest.raises(ConfigError, match="more than 2 attention instances"):
        crowded = SimulationSettings(max_instances=2)
        simulate(generate("poisson", 1, 10), StaticPolicy(deployment(3, 1)), crowded)


FLAGS = ["--model", "deepseek-v2", "--routing", "uniform", "--policy", "static:1A8E,sglang"]


def test_command_prints_a_table_and_writes_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, chrome = tmp_path / "report.json", tmp_path / "chrome.json"
    files = ["--save-dir", str(tmp_path), "--trace-out", str(chrome)]
    trace = ["synthetic:gamma", "--rate", "2", "--duration", "60", "--max-gpus", "16"]
    assert main(["simulate", "trace", *trace, *FLAGS, *files]) == 0
    shown, page = capsys.readouterr().out, (tmp_path / "report.html").read_text()
    for text in (" ".join(shown.split()), page):
        for part in ("static:1A8E", "met the TTFT objective", "policy: token-split", "GPU hours"):
            assert part in text, part
    first, second = json.loads(out.read_text())
    assert first["completed"] == second["completed"] > 0
    assert second["decisions"][0]["deployment"] == "EP8TP8"
    assert json.loads(chrome.read_text())["traceEvents"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.csv"], "nowhere.csv: No such file"),
        (["synthetic:weekly"], "poisson, gamma, diurnal"),
        (["synthetic:poisson", "--rate", "0"], "--rate must be above 0, got 0"),
        (["synthetic:poisson", "--model", "gpt-9"], "no facts about model 'gpt-9'"),
        (["synthetic:poisson", "--max-gpus", "0"], "--max-gpus must be at least 1"),
        (["synthetic:poisson", "--policy", "janus", "--max-gpus", "4"], "but there are 4"),
        (
            ["synthetic:poisson", "--policy", "sglang", "--system", "l40s", "--max-gpus", "8"],
            "does not fit on 8 GPUs",
        ),
        (["synthetic:poisson", "--policy", "static:2X"], "a size is written 2A6E, EP16 or"),
        (["synthetic:poisson", "--policy", "static:1A2E"], "use more instances"),
        (["synthetic:poisson", "--ttft", "0"], "--ttft must be above 0"),
        (["synthetic:poisson", "--headroom", "-1"], "--headroom must be above 0"),
        (["synthetic:poisson", "--tpot", "-5"], "above 0"),
        (["synthetic:poisson", "--routing", "somehow"], "neither a file nor one of"),
        (["synthetic:poisson", "--max-num-seqs", "9999"], "max_num_seqs from 1"),
        (["synthetic:poisson", "--policy", "fastest"], "known are"),
        (
            ["synthetic:poisson", "--json", "/nowhere/x.json", "--duration", "9"],
            "cannot be written",
        ),
    ],
)
def test_command_answers_bad_input_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "trace", *FLAGS, *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert error.count("\n") == 1
