"""Batches through a policy on a placement: what the busiest instance would have read.

The batches are a trace's own (`RoutingTrace.batches`), samples of it, or synthetic ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from janus_moe.errors import ConfigError
from janus_moe.policy.activation import LayerLayout, Policy, Scheduler
from janus_moe.policy.placement import Placement
from janus_moe.policy.routing_trace import RoutingTrace


class Replay(NamedTuple):
    """Per batch of one layer.

    a_max: [batches] int64, most activated experts on one instance, what the layer costs.
    activated: [batches] int64, activated experts over all instances; an expert that two compute
        counts twice.
    num_optimal: batches whose assignment is proved optimal.
    """

    max_activated: NDArray[np.int64]
    activated: NDArray[np.int64]
    num_optimal: int


def replay(
    batches: Iterable[NDArray[np.int32]], layout: LayerLayout, policy: Policy, seed: int = 0
) -> Replay:
    """batches: [tokens, top_k] int32 ids each."""
    scheduler = Scheduler(layout, policy, seed=seed)
    max_activated, activated, num_optimal = [], [], 0
    for expert_ids in batches:
        answer = scheduler.rewrite(expert_ids)
        max_activated.append(int(answer.activated.max()))
        activated.append(int(answer.activated.sum()))
        num_optimal += answer.optimal
    return Replay(np.array(max_activated, np.int64), np.array(activated, np.int64), num_optimal)


def replay_trace(
    trace: RoutingTrace, placement: Placement, policy: Policy, seed: int = 0
) -> list[Replay]:
    """One replay per layer, of the batches as they were recorded."""
    if (trace.num_layers, trace.num_experts) != (placement.num_layers, placement.num_experts):
        raise ConfigError(
            f"the trace has {trace.num_layers} layers of {trace.num_experts} experts, the "
            f"placement {placement.num_layers} of {placement.num_experts}"
        )
    return [
        replay(trace.batches(layer), placement.layer_layout(layer), policy, seed)
        for layer in range(trace.num_layers)
    ]
