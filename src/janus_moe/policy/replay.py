"""Replay of routed batches through a scheduling policy: what the busiest instance would have read.

It knows one layer at a time, and neither where the batches come from (a trace's own, samples of it,
synthetic ones) nor how the layout was chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from janus_moe.policy.activation import LayerLayout, Policy, Scheduler


class Replay(NamedTuple):
    """What the batches of one layer activate.

    max_activated: [batches] int64, most activated experts on one instance, what the layer costs.
    activated: [batches] int64, activated experts over all instances; one that two compute is two.
    num_optimal: batches whose assignment is proved optimal.
    """

    max_activated: NDArray[np.int64]
    activated: NDArray[np.int64]
    num_optimal: int


def replay(
    batches: Iterable[NDArray[np.int32]], layout: LayerLayout, policy: Policy, seed: int = 0
) -> Replay:
    """Every batch is scheduled on the layout, in order.

    batches: each [tokens, top_k] int32, ids of routed experts.
    layout: of the layer's replicas on the expert instances.
    policy: which replica computes a token.
    seed: of policies that draw.
    """
    scheduler = Scheduler(layout, policy, seed=seed)
    max_activated, activated, num_optimal = [], [], 0
    for expert_ids in batches:
        answer = scheduler.rewrite(expert_ids)
        max_activated.append(int(answer.activated.max()))
        activated.append(int(answer.activated.sum()))
        num_optimal += answer.optimal
    return Replay(np.array(max_activated, np.int64), np.array(activated, np.int64), num_optimal)
