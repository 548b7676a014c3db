"""Whether routing has changed, and since when: how much of what was seen still tells the future.

An adaptive window in the manner of ADWIN (Bifet and Gavalda, 2007): counts lie in buckets by age,
and everything before a cut is forgotten if it differs from what came after by more than chance and
a tolerance explain. Two shares of tokens are compared by their total variation distance, the part
of the tokens that would have to go to other experts to turn one into the other. This module does
not know where counts come from.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 0.2
"""Distances below it stay: the older part then pulls the shares by less than that."""
NOISE_FACTOR = 3.0
"""Times the distance that independent tokens would show; those of one text are not independent."""
MIN_BATCHES = 32
"""Fewer say too little about the chance of being active to plan a placement on."""


def buckets_to_keep(tokens: NDArray[np.int64], num_batches: NDArray[np.int64]) -> int:
    """How many of the newest buckets are alike; all of them when nothing changed.

    tokens: [buckets, layers, experts], routed to each expert, the newest bucket first.
    num_batches: [buckets].
    """
    best, keep = 0.0, len(tokens)
    newer, older = np.cumsum(tokens, axis=0), np.cumsum(tokens[::-1], axis=0)[::-1]
    seen = np.cumsum(num_batches)
    for cut in range(1, len(tokens)):
        if seen[cut - 1] < MIN_BATCHES or not older[cut].any():
            continue
        excess = _excess(newer[cut - 1], older[cut])
        if excess > best:
            best, keep = excess, cut
    return keep


def _excess(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """The distance beyond what is tolerated, mean over layers. one, other: [layers, experts]."""
    shares, errors = [], []
    for counts in (one, other):
        total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
        share = counts / total
        shares.append(share)
        errors.append(share * (1 - share) / total)
    distance = 0.5 * np.abs(shares[0] - shares[1]).sum(axis=1)
    # The mean absolute value of a normal variable is sqrt(2 / pi) of its deviation.
    noise = 0.5 * np.sqrt(2 / np.pi * (errors[0] + errors[1])).sum(axis=1)
    return float((distance - NOISE_FACTOR * noise).mean()) - TOLERANCE
