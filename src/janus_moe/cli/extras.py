"""What is not installed with Janus itself is asked for before work begins that would need it."""

from __future__ import annotations

import importlib.util

from janus_moe.errors import ConfigError

EXTRAS = {"matplotlib": "bench"}


def note_missing_plots() -> str:
    """Returns what to do for plots beside a report; empty where they are drawn."""
    if importlib.util.find_spec("matplotlib") is not None:
        return ""
    return f"no plots: pip install 'janus-moe[{EXTRAS['matplotlib']}]'"


def require_extra(package: str, flag: str) -> None:
    """Raises ConfigError where a package that `flag` needs is missing."""
    if importlib.util.find_spec(package) is None:
        extra = EXTRAS[package]
        raise ConfigError(f"{flag} needs {package}: pip install 'janus-moe[{extra}]'")
