"""Claim: the wheel is complete: installed where its dependencies are, it serves and plans."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = (
    "py.typed",
    "bundled/model.safetensors",
    "bundled/tokenizer.json",
    "planner/latency/data/devices/h100_sxm.json",
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the built wheel and sees the other packages."""
    folder = tmp_path_factory.mktemp("wheel")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    found = environment / "bin" / "python"
    _pip("--python", str(found), "install", "--no-deps", "--no-index", str(wheel))
    (site,) = environment.glob("lib/python*/site-packages")
    # A folder named here is searched, but the links in it (editable installs) are not followed.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return found


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def _run(command: list[str], cwd: Path) -> str:
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, capture_output=True, text=True, env=outside, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_installed_package_is_the_wheel_and_holds_its_data(
    python: Path, tmp_path: Path
) -> None:
    where = _run([str(python), "-c", "import janus_moe; print(janus_moe.__file__)"], tmp_path)
    package = Path(where.strip()).parent
    assert package.is_relative_to(python.parents[1])
    assert not [name for name in NEEDED if not (package / name).is_file()]


@pytest.mark.slow
@pytest.mark.timeout(600)  # a new installation compiles its kernels
def test_the_installed_command_generates_and_plans(python: Path, tmp_path: Path) -> None:
    janus = str(python.with_name("janus"))
    assert "janus" in _run([janus, "--version"], tmp_path)
    prompt = ["--prompt", "def main(", "--max-tokens", "4", "--expert-instances", "2"]
    assert _run([janus, "generate", *prompt], tmp_path).strip()
    demand = ["--isl", "16", "--osl", "256", "--tpot", "150", "--target-request-rate", "10"]
    plan = _run(
        [janus, "plan", "--model", "deepseek-v2", "--system", "h100_sxm", *demand], tmp_path
    )
    assert "deepseek-v2" in plan.lower()
