"""Claim: a wrong command line is answered in one line that says what to write instead."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec.inspect import Metadata

from janus_moe.cli import main, serve
from janus_moe.cli.commands import COMMANDS, MODULE_NAME
from janus_moe.cli.flags import Command, flag_name, parse
from janus_moe.config import ClusterConfig, EngineConfig, ServerConfig
from janus_moe.setting_hints import VLLM
from janus_moe.settings import fields_of


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command line that is refused."""
    assert main(arguments) == 2
    return one_line(capsys)


def fail(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line about a value that cannot be; the flag itself is right."""
    assert main(arguments) in (1, 2)
    return one_line(capsys)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def module_of(name: str) -> str:
    return f"janus_moe.cli.{name.translate(MODULE_NAME)}"


def command_of(name: str) -> Command:
    command: Command = importlib.import_module(module_of(name)).COMMAND
    return command


def required(name: str) -> list[str]:
    """What must be said so that a command is asked for anything at all."""
    return {
        "worker": ["--join", "a:1", "--name", "a", "--secret-file", "a"],
        "generate": ["--prompt", "a"],
        "plan": ["deepseek-v2"],
        "simulate trace": ["synthetic:poisson", "--model", "deepseek-v2"],
        "simulate routing": ["a.jrt"],
    }.get(name, [])


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
        (["serve", "--port", "many"], "'many' is not a whole number"),
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


@pytest.mark.parametrize("name", COMMANDS)
def test_every_number_keeps_to_its_bounds_and_to_64_bits(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every number of every command: what is refused is refused before anything is done."""
    for options in command_of(name).options:
        for field in fields_of(options):
            kind = repr(field.type)
            values = ["9" * 20, "-" + "9" * 20] if "IntType" in kind else []
            values += ["nan", "inf", "-inf"] if "FloatType" in kind and not values else []
            for value in values:
                flag = flag_name(field.name)
                line = fail(capsys, *name.split(), *required(name), f"{flag}={value}")
                assert f"{flag} must " in line


@pytest.mark.parametrize("name", COMMANDS)
def test_no_text_is_empty(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for options in command_of(name).options:
        for field in fields_of(options):
            if any(kind in repr(field.type) for kind in ("StrType", "CustomType")):
                flag = flag_name(field.name)
                line = fail(capsys, *name.split(), *required(name), flag, "")
                assert f"{flag} must not be empty" in line or f"and {flag} differ" in line


@pytest.mark.parametrize("name", COMMANDS)
def test_what_cannot_be_written_is_refused_before_the_work(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = command_of(name)
    idle = replace(command, run=lambda *_: pytest.fail("it has begun"))
    monkeypatch.setattr(importlib.import_module(module_of(name)), "COMMAND", idle)
    (tmp_path / "file").touch()
    for options in command.options:
        for field in fields_of(options):
            looks = field.type.extra if isinstance(field.type, Metadata) else None
            kind, flag = (looks or {}).get("writes"), flag_name(field.name)
            # Every path is one that is written, or one that is read.
            written = field.name in ("json", "out", "trace_out", "plot", "save_dir")
            assert (kind is not None) == (written and "CustomType" in repr(field.type))
            if kind == "file":
                for bad in (tmp_path, tmp_path / "none" / "a.json", tmp_path / "file" / "a.json"):
                    line = fail(capsys, *name.split(), *required(name), flag, str(bad))
                    assert f"{flag} {bad} cannot be written" in line
            if kind == "folder":
                for bad in (tmp_path / "file", tmp_path / "file" / "below"):
                    line = fail(capsys, *name.split(), *required(name), flag, str(bad))
                    assert f"{flag} {bad} cannot be written" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # nothing is left behind


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("profile exchange --hidden-size 0", "--hidden-size must be at least 1 and at most"),
        ("profile exchange --budget -1", "--budget must be above 0 and at most"),
        ("profile exchange --batches 4 0", "--batches must be at least 1 and at most"),
        ("profile exchange --attention-nodes -1", "--attention-nodes must be at least 0, got -1"),
        ("simulate trace synthetic:poisson --model deepseek-v2 --seed -1", "--seed must be at"),
        ("simulate trace synthetic:poisson --model deepseek-v2 --rate 1G", "is not a number"),
        ("simulate trace synthetic:poisson --model deepseek-v2 --rate 1e9", "lower --rate"),
        ("serve --kv-cache-memory-bytes -5G", "--kv-cache-memory-bytes must be at least 1"),
        ("serve bundled --model other", "MODEL and --model differ, 'bundled' and 'other'"),
        ("serve --port 1e3", "--port: '1e3' is not a whole number ("),
        ("serve --max-model-len many", "'many' is not a whole number; write e.g. 4096, 4K or 1.5G"),
        ("serve --startup-timeout 1e300", "at most 1,000,000 seconds, got 1e+300"),
        ("generate --prompt a --temperature -1", "--temperature must be at least 0 and at most 2"),
        ("generate --prompt a --top-p 2", "--top-p must be above 0 and at most 1, got 2.0"),
        ("generate --prompt a --top-k -7", "--top-k must be at least 0, got -7"),
        ("trace --steps 0", "--steps must be at least 1, got 0"),
        ("serve --port 0 --chat-template /nonexistent", "/nonexistent"),
        ("plan deepseek-v2 --profile a.json", "give either a MODEL, or --profile FILE"),
        ("generate --prompt a --seed 99999999999999999999999", "--seed must fit into 64 bits"),
        ("generate --prompt a --sampling-seed -99999999999999999999", "must fit into 64 bits"),
    ],
)
def test_values_are_refused_by_their_flags(
    arguments: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in fail(capsys, *arguments.split())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"model: mixtral-8x7b\nisl: \xff\n", "is not UTF-8: byte 25"),
        (b"isl: [1\n", "is not valid YAML: line 2, column 1: expected"),
        (b"- isl\n", "must be a mapping"),
        (b"model: mixtral-8x7b\ntotal-gpu: 8\n", "total-gpu; did you mean "),
        (b"model: mixtral-8x7b\ntotal-gpus: many\n", "total-gpus: 'many' is not a whole number"),
        (b"model: mixtral-8x7b\ntotal-gpus: 1.5\n", "total-gpus must be a whole number, got '1.5"),
        (b"model: mixtral-8x7b\ntotal-gpus: 0\n", "total-gpus must be at least 1"),
        (b"model: 7\n", "model must be a text (in a file: in quotes)"),
        (b"model: mixtral-8x7b\nobjective: joy\n", "objective must be one of gpus, price"),
    ],
)
def test_a_wrong_settings_file_is_named_with_its_key(
    content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.yaml"
    path.write_bytes(content)
    line = fail(capsys, "plan", "--config", str(path))
    assert f"--config {path}" in line and said in line


def test_an_empty_settings_file_has_no_settings(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert parse("", "", serve.COMMAND, ["--config", str(tmp_path / "empty.yaml")])[0].seed == 0


def test_an_empty_key_of_the_environment_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("", " key", "key\n"):
        monkeypatch.setenv("JANUS_API_KEY", key)
        assert "api-key" in fail(capsys, "serve", "bundled")


class Full(io.StringIO):
    """Standard output on a disk that is full, or that nothing reads."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def flush(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (OSError(28, "No space left on device"), 1, "janus: No space left on device\n"),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
    ],
)
def test_output_that_cannot_be_written_is_one_line_or_silence(
    error: OSError,
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", Full(error))
    assert main(["--version"]) == status
    assert capsys.readouterr().err == said


def test_an_interrupt_while_modules_are_imported_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "janus_moe.cli.commands":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "janus_moe.cli.commands")
    monkeypatch.setattr(sys, "meta_path", [Impatient(), *sys.meta_path])
    assert main(["--version"]) == 130
    assert capsys.readouterr().err == "janus: interrupted\n"


def test_flags_are_read_without_a_framework() -> None:
    """Usage errors and help of every command stay quick."""
    modules = [module_of(name) for name in COMMANDS]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
