"""Which instances of a host compute at the same time, and how its cores are divided among them.

The plan divides the cores by it; a worker decides by it whether a waiting thread may spin.
"""

from __future__ import annotations

from collections.abc import Mapping

from janus_moe.config import TransportSetting
from janus_moe.errors import ConfigError
from janus_moe.spec import ONE_PROCESS, Pool

InstanceCounts = Mapping[Pool, int]
"""Pool -> its instances on one host."""
MOST_PER_CORE = 8
"""Threads of one instance; beyond it libraries of threads crash while they start."""


def computing_with(
    pool: Pool, counts: InstanceCounts, transport: TransportSetting, num_micro_batches: int
) -> int:
    """Instances of a host that may compute while one of `pool` does, itself included.

    The instances of a pool compute at once and the pools take turns. With several micro-batches
    both pools compute at once. In one process one thread runs the expert instances one by one.
    """
    if num_micro_batches > 1:
        return sum(counts.values())
    if pool == "expert" and transport in ONE_PROCESS:
        return min(1, counts[pool])
    return counts[pool]


def most_computing(
    counts: InstanceCounts, transport: TransportSetting, num_micro_batches: int
) -> int:
    """Instances of a host that may compute at once, of whichever pools."""
    return max(computing_with(pool, counts, transport, num_micro_batches) for pool in counts)


def require_threads(wanted: int, cores: int) -> None:
    """Raises ConfigError for more threads of an instance than a host can start sensibly.

    wanted: what the settings say; 0 divides the cores evenly.
    cores: of the host.
    """
    most = MOST_PER_CORE * cores
    if wanted > most:
        raise ConfigError(
            f"--threads {wanted} is more than {MOST_PER_CORE} for each of the {cores} cores of a "
            f"host; use at most {most}, or 0 to divide the cores"
        )


def threads_each(cores: int, computing: int, wanted: int) -> int:
    """Compute threads of one instance.

    cores: of its host.
    computing: instances that share them.
    wanted: what the settings say; 0 divides the cores evenly.
    """
    return wanted or max(1, cores // max(1, computing))
