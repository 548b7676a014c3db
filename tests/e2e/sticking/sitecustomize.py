"""Lets one worker's computing thread stand still, once a file says so; first on PYTHONPATH.

JANUS_TEST_STICKS: "NAME:HOW:FILE"; NAME of the worker, HOW it stands still (`sleeps` or `spins`),
FILE that makes it do so.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def stick(name: str, how: str, file: str) -> None:
    """Waits for the classes to be loaded, and changes what computes a layer or a step."""
    module, cls, method = ("janus_moe.experts.runner", "ExpertRunner", "compute")
    if name.startswith("attention"):
        module, cls, method = ("janus_moe.attention.runner", "AttentionRunner", "run")
    while not hasattr(sys.modules.get(module), cls):
        time.sleep(0.05)
    runner = getattr(sys.modules[module], cls)
    inner: Callable[..., Any] = getattr(runner, method)

    def sticking(*arguments: Any, **options: Any) -> Any:
        while Path(file).exists():
            if how == "sleeps":
                time.sleep(0.01)
        return inner(*arguments, **options)

    setattr(runner, method, sticking)


if "JANUS_TEST_STICKS" in os.environ:
    name, how, file = os.environ["JANUS_TEST_STICKS"].split(":")
    if f'"name":"{name}"' in Path("/proc/self/cmdline").read_text():
        threading.Thread(target=stick, args=(name, how, file), daemon=True).start()
