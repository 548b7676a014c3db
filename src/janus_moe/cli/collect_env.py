"""`janus collect-env`: facts about machine and installation that a bug report needs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import psutil

from janus_moe.cli.flags import Command

PACKAGES = (
    "janus-moe",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "numba",
    "llvmlite",
    "msgspec",
    "pyzmq",
    "fastapi",
    "uvicorn",
    "triton",
)


def run() -> int:
    """Prints one fact per line; nothing secret, no paths."""
    for name, value in facts().items():
        print(f"{name:<20}{value}")
    return 0


def facts() -> dict[str, str]:
    """What the machine and the installation are."""
    import torch

    memory = psutil.virtual_memory()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    result = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": f"{usable} usable of {os.cpu_count()}",
        "memory": f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f}",
        "cuda": _cuda(torch),
        "torch cpu": torch.backends.cpu.get_cpu_capability(),
    }
    for package in PACKAGES:
        try:
            result[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            result[package] = "not installed"
    result["environment"] = ", ".join(k for k in sorted(os.environ) if _relevant(k)) or "-"
    result["executable"] = "virtual environment" if sys.prefix != sys.base_prefix else "system"
    return result


def _relevant(name: str) -> bool:
    return name.startswith(("JANUS_", "OMP_", "NUMBA_", "HF_", "CUDA_"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _cuda(torch: object) -> str:
    cuda = torch.cuda  # type: ignore[attr-defined]
    if not cuda.is_available():
        return "none"
    return f"{cuda.device_count()} x {cuda.get_device_name(0)}"


COMMAND = Command(options=(), run=run)
