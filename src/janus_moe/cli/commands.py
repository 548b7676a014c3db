"""Finds the subcommand, turns errors into one clear line, and nothing else."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from janus_moe import __version__
from janus_moe.cli import INTERRUPTED_STATUS
from janus_moe.cli.flags import Command, UsageError, parse
from janus_moe.errors import JanusError

COMMANDS = {
    "serve": "serve a model over an OpenAI-compatible HTTP API",
    "worker": "make this machine a host of a service",
    "generate": "complete prompts without a server",
    "plan": "how many GPUs of each pool, and whether to have pools",
    "simulate trace": "play requests through deployments that scale",
    "simulate routing": "replay recorded routing through policies and placements",
    "profile": "measure a model on this machine, for plan and simulate",
    "profile exchange": "measure messages between instances and hosts",
    "trace": "write what every instance does when, as a Chrome trace",
    "collect-env": "print facts about machine and installation for bug reports",
}
MODULE_NAME = str.maketrans("- ", "__")
USAGE_STATUS = 2
BROKEN_PIPE_STATUS = 141
"""As of a program that the signal of a broken pipe has ended."""


def run_command(arguments: Sequence[str]) -> int:
    """Runs `janus ARGUMENTS` and returns the exit status.

    It is 0, 1 (failed), 2 (bad usage), 130 (interrupted) or 141 (nothing reads the output).
    """
    name = _command(arguments)
    prog = "janus" if name is None else f"janus {name}"
    try:
        try:
            return _run(name, prog, list(arguments))
        finally:
            sys.stdout.flush()
    except UsageError as error:
        print(f"{prog}: {error} (`{prog} --help` lists all)", file=sys.stderr)
        return USAGE_STATUS
    except JanusError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE_STATUS
    except OSError as error:
        _discard_output()
        what = f"{error.filename}: " if error.filename else ""
        print(f"{prog}: {what}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return INTERRUPTED_STATUS


def _run(name: str | None, prog: str, arguments: list[str]) -> int:
    if name is None:
        return _overview(arguments)
    module = importlib.import_module(f"janus_moe.cli.{name.translate(MODULE_NAME)}")
    command: Command = module.COMMAND
    own = arguments[len(name.split()) :]
    return command.run(*parse(prog, COMMANDS[name], command, own))


def _discard_output() -> None:
    """Keeps the interpreter from writing at its end what cannot be written."""
    with contextlib.suppress(OSError, ValueError):
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _command(arguments: Sequence[str]) -> str | None:
    """Returns the command that the arguments begin with, of two words where there is one."""
    for words in (2, 1):
        if (name := " ".join(arguments[:words])) in COMMANDS:
            return name
    return None


def _overview(arguments: Sequence[str]) -> int:
    """Answers a command line without a command: help, version, or which command was meant."""
    first = arguments[0] if arguments else ""
    if first in ("-V", "--version"):
        print(f"janus {__version__}")
        return 0
    below = [name for name in COMMANDS if name.startswith(f"{first} ")]
    if (
        first
        and not first.startswith("-")
        and not (below and arguments[1:] in (["-h"], ["--help"]))
    ):
        if below:
            raise UsageError(f"say {' or '.join(f'`janus {name}`' for name in below)}")
        near = difflib.get_close_matches(first, COMMANDS, n=1)
        meant = f"did you mean `janus {near[0]}`?" if near else f"they are {', '.join(COMMANDS)}"
        raise UsageError(f"there is no command {first!r}; {meant}")
    if first not in ("", "-h", "--help", *(name.split()[0] for name in below)):
        raise UsageError(f"{first} before a command; write `janus COMMAND {first}`")
    width = max(map(len, COMMANDS)) + 2
    print("usage: janus COMMAND [flags]\n")
    print("MoE models with attention and experts on separate worker pools.\n")
    for name in below or COMMANDS:
        print(f"  {name:<{width}}{COMMANDS[name]}")
    print("\n`janus COMMAND --help` lists its flags, `janus --version` shows the version.")
    return 0 if first else USAGE_STATUS
