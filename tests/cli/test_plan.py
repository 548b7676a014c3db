"""`janus plan`: answers, settings that `janus serve` takes, and bad input without a stack trace."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from janus_moe.cli import main, serve
from janus_moe.cli.flags import build, parse, read_yaml, split
from janus_moe.cluster.deployment_plan import plan_deployment, this_host
from janus_moe.config import EngineConfig, ServerConfig
from janus_moe.planner.latency import model_names, serve_source
from janus_moe.policy.routing_trace import TraceRecorder
from janus_moe.policy.synthetic import SyntheticRouter

ASK = ["plan", "--model", "qwen3-30b-a3b", "--system", "h100_sxm", "--total-gpus", "16"]
RATE = ["--target-request-rate", "4"]


def words(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


def test_a_plan_has_shapes_a_verdict_and_a_frontier(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASK, *RATE, "--explain"]) == 0
    text = words(capsys.readouterr().out)
    for part in (
        "A1E",
        "verdict:",
        "tokens/s per user",
        "where a step goes",
        "GB on each",
        "a_max",
    ):
        assert part in text, part
    assert "interpolated" in text and "roofline" in text


def test_what_is_saved_is_taken_by_serve(tmp_path: Path) -> None:
    assert main([*ASK, *RATE, "--save-dir", str(tmp_path)]) == 0
    values = read_yaml(str(tmp_path / "serve.yaml"))
    engine, _ = split(values, [EngineConfig, ServerConfig])
    config = build(EngineConfig, engine)
    figures = json.loads((tmp_path / "plan.json").read_text())
    pools = figures["verdict"]["disaggregate"]
    chosen = figures["pools"][0] if pools else figures["monolithic"]
    assert config.attention_instances == chosen["num_attention"]
    assert config.expert_instances == chosen["num_expert"]
    assert config.max_num_seqs * config.attention_instances >= chosen["batch"]
    assert config.max_model_len == 1024 + 512


@pytest.mark.parametrize("name", [*model_names(), "deepseek-ai/DeepSeek-R1", "bundled"])
def test_the_settings_of_every_model_are_taken_by_serve(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", name, "--system", "b200_sxm", "--isl", "512", "--total-gpus", "64"]
    assert main([*command, "--save-dir", str(tmp_path)]) == 0
    path = tmp_path / "serve.yaml"
    engine, *_ = parse("janus serve", "", serve.COMMAND, ["--config", str(path)])
    obstacles = serve_source(name).obstacles
    shown = words(capsys.readouterr().out)
    for why in obstacles:
        assert why in words(path.read_text()) and why in shown
    if obstacles:
        return
    assert "/" in engine.model or name == "bundled"
    assert name.lower().split("/")[-1] in engine.model.lower()


def test_the_settings_of_a_model_on_this_disk_make_a_deployment(tmp_path: Path) -> None:
    command = ["plan", "bundled", "--system", "cpu", "--isl", "64", "--osl", "64"]
    assert main([*command, "--total-gpus", "4", "--save-dir", str(tmp_path)]) == 0
    path = str(tmp_path / "serve.yaml")
    engine, *_ = parse("janus serve", "", serve.COMMAND, ["--config", path])
    plan = plan_deployment(engine, [this_host(engine)])
    assert plan.membership.shape == engine.shape


def test_settings_of_pools_hold_the_planned_slots(tmp_path: Path) -> None:
    command = ["plan", "--model", "deepseek-v2", "--system", "h100_sxm", "--slots", "27"]
    command += ["--target-concurrency", "64", "--tpot", "200", "--save-dir", str(tmp_path)]
    assert main([*command, "--total-gpus", "8"]) == 0
    config = build(EngineConfig, read_yaml(str(tmp_path / "serve.yaml")))
    assert (config.attention_instances, config.expert_instances) == (1, 6)
    assert config.redundant_experts == 6 * 27 - 160


def test_figures_are_json_without_nan_and_equal_runs_are_equal(tmp_path: Path) -> None:
    for name in ("one.json", "two.json"):
        assert main([*ASK, *RATE, "--json", str(tmp_path / name)]) == 0
    one, two = ((tmp_path / name).read_bytes() for name in ("one.json", "two.json"))
    assert one == two
    figures = json.loads(one, parse_constant=lambda word: pytest.fail(word))
    best = figures["pools"][0]
    parts = best["microseconds"].values()
    assert sum(part["step"] for part in parts) == pytest.approx(1e6 * best["tpot_s"], rel=1e-6)
    assert {part["confidence"] for part in parts} <= {"measured", "interpolated", "roofline"}


def test_a_trace_of_routing_replaces_the_assumption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    router, rng = SyntheticRouter("zipf", 128, 8), np.random.default_rng(1)
    recorder = TraceRecorder(2, 128)
    for _ in range(4):
        ids = router.batch(256, rng)
        recorder.record(0, ids)
        recorder.record(1, ids)
    path = tmp_path / "zipf.jrt"
    recorder.trace().save(path)
    assert main([*ASK, *RATE, "--trace", str(path)]) == 0
    assert "routing of zipf.jrt" in words(capsys.readouterr().out)
    other = ["plan", "--model", "deepseek-v2", *RATE, "--trace", str(path)]
    assert main(other) == 1
    assert "128 experts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "gpt-9", *RATE], "known are"),
        (["--model", "mixtral-8x7b", "--system", "tpu", *RATE], "known are"),
        (["--model", "mixtral-8x7b"], "--target-request-rate"),
        (
            ["--model", "mixtral-8x7b", *RATE, "--total-gpus", "0"],
            "--total-gpus must be at least 1 and",
        ),
        (["--model", "mixtral-8x7b", *RATE, "--tpot", "0"], "--tpot must be above 0"),
        (["--model", "mixtral-8x7b", *RATE, "--tpot", "nan"], "--tpot must be above 0"),
        (["--model", "mixtral-8x7b", *RATE, "--ttft", "-1"], "--ttft"),
        (["--model", "mixtral-8x7b", *RATE, "--isl", "0"], "--isl must be at least 1, got 0"),
        (["--model", "mixtral-8x7b", *RATE, "--isl", "1M"], "positions"),
        (["--model", "mixtral-8x7b", *RATE, "--top-n", "0"], "--top-n must be at least 1"),
        (["--model", "mixtral-8x7b", *RATE, "--osl", "0"], "--osl must be at least 1, got 0"),
        (["--model", "mixtral-8x7b", "--total-gpus", "100M"], "at most 16384, got 104857600"),
        (["--model", "mixtral-8x7b", "--total-gpus", "9" * 20], "at most 16384"),
        (["--model", "mixtral-8x7b", *RATE, "--slots", "0"], "--slots must be at least 1"),
        (
            ["--model", "mixtral-8x7b", "--target-request-rate", "-3"],
            "--target-request-rate must be above 0, got -3",
        ),
        (
            ["--model", "mixtral-8x7b", "--target-concurrency", "0"],
            "--target-concurrency must be at least 1",
        ),
        (["--model", "mixtral-8x7b", *RATE, "--trace", "/does/not/exist"], "cannot be read"),
        (["--model", "mixtral-8x7b", *RATE, "--system", "gb200", "--objective", "price"], "price"),
        (["--model", "mixtral-8x7b", *RATE, "--json", "/does/not/exist.json"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments]) == 1
    line = capsys.readouterr().err
    assert said in line and line.startswith("janus plan: ") and line.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "deepseek-v3", "--system", "l40s", "--total-gpus", "4"], "GPUs, but there"),
        (
            [
                "--model",
                "deepseek-v2",
                "--slots",
                "40",
                "--system",
                "h100_sxm",
                "--total-gpus",
                "8",
            ],
            "40 slots",
        ),
        (["--model", "deepseek-v2", "--system", "h100_sxm", "--tpot", "1"], "the fastest of all"),
        (["--model", "deepseek-v2", "--total-gpus", "8", "--tpot", "30"], "8 GPUs reach at most"),
    ],
)
def test_what_is_impossible_is_said_with_the_nearest_plan(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", *arguments, "--target-request-rate", "5000"]
    assert main(command) == 0
    text = words(capsys.readouterr().out)
    assert "not possible" in text and said in text
    assert ("nearest" in text) == ("reach" in said or "fastest" in said)
    assert main([*command, "--strict-sla"]) == 1


def test_steps_with_long_chunks_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    ask = [
        "plan",
        "--model",
        "deepseek-v2",
        "--system",
        "h100_sxm",
        "--isl",
        "2048",
        "--osl",
        "512",
    ]
    ask += ["--tpot", "100", "--target-request-rate", "1", "--total-gpus", "8"]
    assert main([*ask, "--max-num-batched-tokens", "4096", "--slots", "27"]) == 0
    text = words(capsys.readouterr().out)
    assert "a step with prompts takes" in text and "(4,096)" in text
    assert main([*ask, "--max-num-batched-tokens", "256"]) == 0
    assert "a step with prompts takes" not in words(capsys.readouterr().out)


def test_prices_of_two_kinds_of_devices_decide_and_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = ["--expert-system", "h20", "--gpu-price", "H100=4,h20=1", "--objective", "price"]
    path = tmp_path / "plan.json"
    assert main([*ASK, *RATE, *prices, "--json", str(path)]) == 0
    assert "$/Mtok" in words(capsys.readouterr().out)
    best = json.loads(path.read_text())["pools"][0]
    dollars = best["copies"] * (4 * best["num_attention"] + best["num_expert"])
    assert best["dollars_per_hour"] == pytest.approx(dollars) == best["cost"]
    per_million = dollars / (best["tokens_per_s"] * 3600 / 1e6)
    assert best["dollars_per_million_tokens"] == pytest.approx(per_million)


@pytest.mark.parametrize("text", ["H100", "H100=free", "H100=-1", "B200=3", "=2"])
def test_prices_that_are_none_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASK, *RATE, "--gpu-price", text]) == 1
    assert "--gpu-price" in capsys.readouterr().err
