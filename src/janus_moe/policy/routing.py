"""Which attention instance gets a request.

Pure functions over load snapshots. The caller keeps the snapshots honest: what it has just sent
to an instance counts as waiting there until the instance reports. Nothing here knows of requests
in flight, processes or time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FULL = 0.9
"""Pressure above which memory decides: requests there may soon have to wait for room."""


class InstanceLoad(NamedTuple):
    """One attention instance at one moment.

    num_requests: running and waiting.
    waiting_tokens: prompt tokens sent there that hold no KV blocks yet.
    kv_usage: share of its KV blocks in use, 0 to 1.
    kv_capacity_tokens: tokens its KV cache holds.
    """

    instance: int
    num_requests: int
    waiting_tokens: int
    kv_usage: float
    kv_capacity_tokens: int

    @property
    def pressure(self) -> float:
        """Share of the KV cache that is held or promised; above 1 there is a queue."""
        return self.kv_usage + self.waiting_tokens / max(self.kv_capacity_tokens, 1)


def choose_instance(
    loads: Sequence[InstanceLoad], preferred: int | None = None, max_extra_pressure: float = 0.1
) -> int:
    """The instance with the fewest requests, then the least pressure, then the lowest id; where all
    are `FULL`, the one with the least pressure.

    All attention instances wait for the one with most to do in each step, so numbers of requests
    are kept equal. The cache lags behind them: who fills up the emptiest cache sends all requests
    to instances whose requests are young, until those have many more than the others.

    preferred: an instance that may have the prompt's prefix in its cache (`prefix_instance`); it
        wins while its pressure exceeds the chosen one's by at most `max_extra_pressure`.
    """
    if not loads:
        raise ValueError("there is no attention instance to choose from")
    best = min(loads, key=_rank)
    limit = min(best.pressure + max_extra_pressure, 1.0)
    for load in loads:
        if load.instance == preferred and load.pressure <= limit:
            return load.instance
    return best.instance


def _rank(load: InstanceLoad) -> tuple[float, int, float, int]:
    """Less is better."""
    full = load.pressure if load.pressure > FULL else 0.0
    return full, load.num_requests, load.pressure, load.instance


def prefix_instance(
    token_ids: Sequence[int], instances: Sequence[int], num_tokens: int = 64
) -> int | None:
    """The instance that prompts with these first `num_tokens` tokens share; None if shorter.

    Rendezvous hashing: when an instance leaves, only its own prefixes move.
    """
    if len(token_ids) < num_tokens or not instances:
        return None
    prefix = np.asarray(token_ids[:num_tokens], dtype="<i8").tobytes()

    def weight(instance: int) -> bytes:
        return hashlib.blake2b(prefix + b"%d" % instance, digest_size=8).digest()

    return max(instances, key=weight)
