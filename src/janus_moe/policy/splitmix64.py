"""Numbers that look random and are the same in every process.

The generator is splitmix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

import numpy as np

from janus_moe.compiled import compiled

GOLDEN_GAMMA = 0x9E3779B97F4A7C15


@compiled
def finalize(value):  # type: ignore[no-untyped-def]
    """A uint64 whose bits depend on all bits of the uint64 `value`."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@compiled
def sequence(count):  # type: ignore[no-untyped-def]
    """[count] uint64, the first numbers of the generator with seed 0."""
    found = np.empty(count, np.uint64)
    state = np.uint64(0)
    for place in range(count):
        state += np.uint64(GOLDEN_GAMMA)
        found[place] = finalize(state)
    return found
