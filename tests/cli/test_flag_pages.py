"""Every flag of every command is explained in the page of its subject."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import msgspec
import pytest

from janus_moe.cli.commands import COMMANDS, MODULE_NAME
from janus_moe.cli.flags import Command
from janus_moe.config import ClusterConfig, EngineConfig, ServerConfig

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    "serve": "serving.md",
    "worker": "serving.md",
    "generate": "serving.md",
    "plan": "planning.md",
    "simulate trace": "simulation.md",
    "simulate routing": "scheduling.md",
    "profile": "planning.md",
    "profile exchange": "transport.md",
    "trace": "transport.md",
    "collect-env": "serving.md",
}
SHARED = (EngineConfig, ServerConfig, ClusterConfig)


def flags(name: str) -> set[str]:
    """Those of a command; the settings of the engine belong to `serve`."""
    module = importlib.import_module(f"janus_moe.cli.{name.translate(MODULE_NAME)}")
    command: Command = module.COMMAND
    return {
        "--" + field.name.replace("_", "-")
        for options in command.options
        if name == "serve" or options not in SHARED
        for field in msgspec.structs.fields(options)
    }


def test_every_command_has_a_page() -> None:
    assert PAGES.keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_explained(name: str) -> None:
    page = (DOCS / PAGES[name]).read_text(encoding="utf-8")
    missing = [flag for flag in flags(name) if not re.search(rf"`{flag}(?![\w-])", page)]
    assert not sorted(missing), f"{PAGES[name]} needs a row for each"
    assert f"janus {name}" in page
