"""Finds the subcommand, turns errors into one clear line, and nothing else."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from janus_moe import __version__
from janus_moe.errors import JanusError

COMMANDS = {
    "serve": "serve a model over an OpenAI-compatible HTTP API",
    "worker": "make this machine a host of a service",
    "generate": "complete prompts without a server",
    "plan": "how many GPUs of each pool a service needs, and whether to have pools",
    "simulate": "replay recorded routing, or requests through deployments that scale",
    "profile": "measure a model on this machine for planning",
    "profile exchange": "measure what messages between instances and hosts cost",
    "trace": "write what every instance does when, for a few steps, as a Chrome trace",
    "collect-env": "print what this machine and installation are, for bug reports",
}
MODULE_NAME = str.maketrans("- ", "__")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `janus ARGV` and returns the exit status: 0, 1 (failed) or 2 (bad usage)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    words = 2 if " ".join(arguments[:2]) in COMMANDS else 1
    name = " ".join(arguments[:words])
    if name not in COMMANDS:
        overview = _overview()
        if name and not name.startswith("-"):
            overview.error(f"there is no command {name!r}; commands are {', '.join(COMMANDS)}")
        overview.parse_args(arguments)
        overview.print_help()
        return 2
    module = importlib.import_module(f"janus_moe.cli.{name.translate(MODULE_NAME)}")
    parser = argparse.ArgumentParser(prog=f"janus {name}", description=COMMANDS[name])
    module.add_arguments(parser)
    try:
        status: int = module.run(parser.parse_args(arguments[words:]))
    except JanusError as error:
        print(f"janus {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _overview() -> argparse.ArgumentParser:
    lines = [f"  janus {name:<14}{text}" for name, text in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="janus",
        description="MoE models with attention and experts on separate worker pools.",
        epilog="commands:\n" + "\n".join(lines) + "\n\n`janus COMMAND --help` lists its flags.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"janus {__version__}")
    return parser
