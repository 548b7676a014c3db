"""Claim: a wrong command line is answered in one line that says what to write instead."""

from __future__ import annotations

import pytest

from janus_moe.cli import main
from janus_moe.cli.flag_hints import VLLM
from janus_moe.cli.main import COMMANDS
from janus_moe.config import ClusterConfig, EngineConfig, ServerConfig


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command line that is refused."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_names_the_nearest_flag(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refuse(capsys, *name.split(), "--hepl")
    assert line.startswith(f"janus {name}: there is no flag --hepl; did you mean --help?")
    assert f"`janus {name} --help`" in line


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_fits_80_columns(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main([*name.split(), "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: janus {name}")
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("arguments", [["--help"], ["simulate", "--help"]])
def test_overview_keeps_names_and_descriptions_apart(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    shown = [line.strip().partition("  ") for line in lines if line.startswith("  ")]
    assert {name: text.strip() for name, _, text in shown}.items() <= COMMANDS.items()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tensor-parallel-size", "4"], "--attention-instances and --expert-instances"),
        (["-tp", "4"], "--attention-instances and --expert-instances"),
        (["--enable-expert-parallel"], "--expert-instances"),
        (["--gpu-memory-utilization=0.9"], "--kv-cache-memory-bytes"),
        (["--no-enable-prefix-caching"], "--prefix-caching off"),
        (["--trust-remote-code"], "code from a checkpoint is never run"),
        (["--max_num_seqs", "4"], "write --max-num-seqs"),
        (["--max-num-seq", "4"], "did you mean --max-num-seqs?"),
    ],
)
def test_flags_of_vllm_are_answered_with_what_does_the_same(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refuse(capsys, "serve", "bundled", *arguments)


def test_every_counterpart_of_a_flag_of_vllm_exists() -> None:
    settings = (EngineConfig, ServerConfig, ClusterConfig)
    ours = {name.replace("_", "-") for kind in settings for name in kind.__struct_fields__}
    for name, (flags, why) in VLLM.items():
        assert name not in ours and ours.issuperset(flags) and why, name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sreve"], "did you mean `janus serve`?"),
        (["simulate"], "`janus simulate trace` or `janus simulate routing`"),
        (["--port", "1"], "write `janus COMMAND --port`"),
        (["simulate", "routing"], "--trace is missing"),
        (["worker", "--join", "a:1"], "--name is missing"),
        (["serve", "--port", "many"], "'many' is not a number"),
        (["serve", "--dtype", "int3"], "invalid choice"),
        (["profile", "--json"], "expected one argument"),
    ],
)
def test_what_is_wrong_is_named(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refuse(capsys, *arguments)


def test_a_settings_file_serves_every_command_and_flags_override_it(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path_factory.mktemp("settings") / "plan.yaml"
    path.write_text("model: mixtral-8x7b\ntotal-gpus: 8\nisl: 1K\nsystem: h100_sxm\n")
    assert main(["plan", "--config", str(path), "--isl", "16"]) == 0
    assert "Mixtral" in (text := capsys.readouterr().out) and "16 tokens in" in text
    path.write_text("model: mixtral-8x7b\ntotal-gpu: 8\n")
    assert main(["plan", "--config", str(path)]) == 1
    assert "total-gpu; did you mean total-gpus?" in capsys.readouterr().err
