"""What a machine has to give to a run. Loads no framework unless a GPU is asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil

from janus_moe.errors import ConfigError


@dataclass(frozen=True, slots=True)
class HostFacts:
    """cores: usable by this process. free_bytes: memory available on the serving device."""

    cores: int
    free_bytes: int


def host_facts(device: str) -> HostFacts:
    """What this machine has to give."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("--device cuda: torch sees no CUDA device here; use --device cpu")
        return HostFacts(cores=cores or 1, free_bytes=int(torch.cuda.mem_get_info()[0]))
    return HostFacts(cores=cores or 1, free_bytes=psutil.virtual_memory().available)
