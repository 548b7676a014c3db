"""The claim of the state machine: every schedule ends well, whatever is late, lost or killed.

A failing seed is printed with what happened; JANUS_SEED=<seed> replays it alone, and
JANUS_SCHEDULES=<number> plays more than the suite does.
"""

from __future__ import annotations

import os

import pytest
from tests.cluster.generations.simulation import failure, simulate

SCHEDULES = int(os.environ.get("JANUS_SCHEDULES", "20000"))
BLOCKS = 10
"""Tests that share the schedules, so that each is far from the suite's timeout."""


@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_schedule_ends_well(block: int) -> None:
    """In the old generation or the new one, all requests answered or refused, nothing left over."""
    seeds = [*range(block, SCHEDULES, BLOCKS)]
    if "JANUS_SEED" in os.environ:
        seeds = [int(os.environ["JANUS_SEED"])] if block == 0 else []
    for seed in seeds:
        told = failure(seed)
        assert told is None, told


def test_a_seed_replays() -> None:
    """The same events, decisions and times."""
    logs: list[list[str]] = [[], []]
    for log in logs:
        simulate(7, log)
    assert logs[0] == logs[1] and len(logs[0]) > 20
